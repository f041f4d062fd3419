"""Import every module of the installed package, with no optional package at hand."""

import importlib
import pkgutil

import weighted_mtp

OPTIONAL = {"fastapi", "uvicorn"}  # of the extra `serve`

count = 0
for module in pkgutil.walk_packages(weighted_mtp.__path__, "weighted_mtp."):
    if module.name.endswith("__main__") or "layouts.remote" in module.name:
        continue
    try:
        importlib.import_module(module.name)
        count += 1
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
print(f"{count} modules imported, version {weighted_mtp.__version__}")  # noqa: T201
