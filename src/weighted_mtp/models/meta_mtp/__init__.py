"""The MTP LLaMA: transformer, adapter, value head, checkpoints."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter as MetaLlamaMTPAdapter
    from weighted_mtp.models.meta_mtp.args import ModelArgs as ModelArgs
    from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint as inspect_checkpoint
    from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model as load_meta_mtp_model
    from weighted_mtp.models.meta_mtp.checkpoints import open_checkpoint as open_checkpoint
    from weighted_mtp.models.meta_mtp.checkpoints import save_huggingface as save_huggingface
    from weighted_mtp.models.meta_mtp.checkpoints import save_native as save_native
    from weighted_mtp.models.meta_mtp.kv_cache import KVCache as KVCache
    from weighted_mtp.models.meta_mtp.transformer import Transformer as Transformer
    from weighted_mtp.models.meta_mtp.value_head import ValueHead as ValueHead
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "adapter": "MetaLlamaMTPAdapter",
            "args": "ModelArgs",
            "checkpoints": "inspect_checkpoint load_meta_mtp_model open_checkpoint "
            "save_huggingface save_native",
            "kv_cache": "KVCache",
            "transformer": "Transformer",
            "value_head": "ValueHead",
        },
    )
