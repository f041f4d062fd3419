"""Programs of many styles whose verdict is known: 100 that are right, 60 that are wrong.

Each is a name, a source, and tests; or, for a program that reads and prints, a pair of what it
reads and what it should print. `judge_verdicts.py` judges them.
"""

# ruff: noqa: E501  (programs, as compact as can be)
from __future__ import annotations

Case = tuple[str, str, str | tuple[str, str]]

RIGHT: list[Case] = [
    # --- plain functions -------------------------------------------------------------------------
    ("plain", "def f(a, b=2, *c, d=4, **e):\n    return a + b + sum(c) + d + sum(e.values())",
     "assert f(1) == 7\nassert f(1, 2, 3, d=5, z=6) == 17"),
    ("recursion", "def ack(m, n):\n    return n + 1 if m == 0 else ack(m - 1, 1) if n == 0 else "
     "ack(m - 1, ack(m, n - 1))", "assert ack(2, 3) == 9"),
    ("closure", "def counter():\n    n = 0\n    def step():\n        nonlocal n\n        n += 1\n"
     "        return n\n    return step", "c = counter()\nassert [c(), c(), c()] == [1, 2, 3]\n"
     "assert counter()() == 1"),
    ("lambda table", "ops = {'+': lambda a, b: a + b, '-': lambda a, b: a - b}",
     "assert ops['+'](2, 3) == 5 and ops['-'](2, 3) == -1 and sorted(ops) == ['+', '-']"),
    ("default dict", "from collections import defaultdict\ndef group(words):\n"
     "    d = defaultdict(list)\n    for w in words:\n        d[len(w)].append(w)\n    return d",
     "g = group(['a', 'bb', 'c'])\nassert g == {1: ['a', 'c'], 2: ['bb']} and g[9] == []"),
    ("partial", "from functools import partial\ncube = partial(pow, exp=3)",
     "assert cube(2) == 8 and cube.keywords == {'exp': 3}"),
    ("cache", "import functools\n@functools.lru_cache(None)\ndef fib(n):\n"
     "    return n if n < 2 else fib(n - 1) + fib(n - 2)",
     "assert fib(60) == 1548008755920\nassert fib.cache_info().misses == 61"),
    ("singledispatch", "from functools import singledispatch\n@singledispatch\ndef size(x):\n"
     "    return -1\n@size.register\ndef _(x: int):\n    return x\n@size.register\n"
     "def _(x: list):\n    return len(x)",
     "assert (size(5), size([1, 2]), size('')) == (5, 2, -1)"),
    ("match", "def kind(x):\n    match x:\n        case {'op': op, **rest}: return op, rest\n"
     "        case [first, *others]: return first, others\n        case int(n) if n < 0: return 'neg'"
     "\n        case _: return None",
     "assert kind({'op': 1, 'a': 2}) == (1, {'a': 2})\nassert kind((1, 2, 3)) == (1, [2, 3])\n"
     "assert kind(-4) == 'neg' and kind('x') is None"),
    ("walrus and comprehension", "def f(xs):\n    return [y for x in xs if (y := x * x) % 2]",
     "assert f(range(6)) == [1, 9, 25]"),
    ("frozen sets", "def parts(s):\n    return {frozenset(x for i, x in enumerate(s) if m >> i & 1)"
     " for m in range(1 << len(s))}",
     "assert parts('ab') == {frozenset(), frozenset('a'), frozenset('b'), frozenset('ab')}"),
    ("decimal and fraction", "from decimal import Decimal\nfrom fractions import Fraction\n"
     "def tax(x): return Decimal(x) * Decimal('0.19')\ndef half(x): return Fraction(x, 2)",
     "from decimal import Decimal\nfrom fractions import Fraction\n"
     "assert tax('100.00') == Decimal('19') and str(tax('100.00')) == '19.0000'\n"
     "assert half(3) == Fraction(3, 2) == 1.5"),
    ("complex", "import cmath\ndef roots(a, b, c):\n    d = cmath.sqrt(b * b - 4 * a * c)\n"
     "    return (-b + d) / (2 * a), (-b - d) / (2 * a)",
     "assert roots(1, 0, 1) == (1j, -1j) and abs(roots(1, -3, 2)[0] - 2) < 1e-9"),
    ("bytes", "import struct\ndef pack(n): return struct.pack('>IH', n, 7)\n"
     "def flip(b): return bytearray(reversed(b))",
     "assert pack(1) == b'\\0\\0\\0\\1\\0\\7' and flip(b'ab') == bytearray(b'ba')"),
    # --- time, ids, paths ------------------------------------------------------------------------
    ("timedelta", "from datetime import datetime, timedelta\ndef gap(a, b):\n"
     "    return datetime.fromisoformat(b) - datetime.fromisoformat(a)",
     "from datetime import timedelta\nassert gap('2024-02-28', '2024-03-01') == timedelta(days=2)\n"
     "assert gap('2024-01-01T00:00', '2024-01-01T01:30').total_seconds() == 5400"),
    ("time zones", "from datetime import datetime, timezone, timedelta\n"
     "def there(h): return datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=h)))",
     "from datetime import datetime, timezone\n"
     "assert there(2) == datetime(2024, 5, 1, 10, tzinfo=timezone.utc)\n"
     "assert there(2).utcoffset().seconds == 7200"),
    ("dates", "import datetime, calendar\ndef last(y, m): return datetime.date(y, m, "
     "calendar.monthrange(y, m)[1])", "import datetime\n"
     "assert last(2024, 2) == datetime.date(2024, 2, 29)\nassert last(2023, 2).strftime('%j') == '059'"),
    ("uuid", "import uuid\ndef name(x): return uuid.uuid5(uuid.NAMESPACE_DNS, x)",
     "import uuid\nassert name('a.b') == uuid.uuid5(uuid.NAMESPACE_DNS, 'a.b')\n"
     "assert isinstance(name('x'), uuid.UUID)"),
    ("paths", "from pathlib import PurePosixPath, Path\ndef parent(p): return PurePosixPath(p).parent\n"
     "def join(*xs): return Path(*xs)",
     "from pathlib import PurePosixPath, Path\nassert parent('/a/b') == PurePosixPath('/a')\n"
     "assert join('a', 'b') == Path('a/b') and join('a').name == 'a'"),
    # --- classes ---------------------------------------------------------------------------------
    ("stack", "class Stack:\n    def __init__(self): self.items = []\n"
     "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
     "    def __len__(self): return len(self.items)\n    def __bool__(self): return bool(self.items)",
     "s = Stack()\nassert not s and len(s) == 0\ns.push(1); s.push(2)\nassert s.items == [1, 2]\n"
     "s.items.append(3)\nassert s.pop() == 3 and len(s) == 2 and s"),
    ("attribute kept in hand", "class Box:\n    def __init__(self): self.log = []; self.by = {}\n"
     "    def add(self, k, v): self.log.append(k); self.by.setdefault(k, []).append(v)",
     "b = Box()\nlog, by = b.log, b.by\nb.add('x', 1); b.add('x', 2)\n"
     "assert log == ['x', 'x'] and by == {'x': [1, 2]} and log is b.log and by['x'] is b.by['x']"),
    ("vector", "class Vec:\n    def __init__(s, x, y): s.x, s.y = x, y\n"
     "    def __add__(s, o): return Vec(s.x + o.x, s.y + o.y)\n"
     "    def __mul__(s, k): return Vec(s.x * k, s.y * k)\n    __rmul__ = __mul__\n"
     "    def __neg__(s): return Vec(-s.x, -s.y)\n    def __abs__(s): return (s.x**2 + s.y**2) ** 0.5\n"
     "    def __eq__(s, o): return (s.x, s.y) == (o.x, o.y)\n    def __iter__(s): yield s.x; yield s.y\n"
     "    def __matmul__(s, o): return s.x * o.x + s.y * o.y\n    def __getitem__(s, i): return (s.x, s.y)[i]",
     "assert Vec(1, 2) * 3 == Vec(3, 6) == 3 * Vec(1, 2)\nassert abs(Vec(3, 4)) == 5 and -Vec(1, 2) == "
     "Vec(-1, -2)\nassert Vec(1, 2) @ Vec(3, 4) == 11 and tuple(Vec(1, 2)) == (1, 2) and Vec(8, 9)[1] == 9\n"
     "v = Vec(1, 1); v += Vec(1, 1); assert v == Vec(2, 2) and Vec(1, 2) != Vec(2, 1)"),
    ("money equals a number", "class Money:\n    def __init__(self, n): self.n = n\n"
     "    def __eq__(self, o): return self.n == (o.n if isinstance(o, Money) else o)\n"
     "    def __hash__(self): return hash(self.n)\ndef pay(n): return Money(n)",
     "assert pay(5) == 5 and 5 == pay(5) and pay(5) != 6 and pay(2) == Money(2)\n"
     "assert pay(5) in [1, 5] and {pay(1): 'a'}[pay(1)] == 'a' and [pay(1), pay(2)] == [1, 2]"),
    ("tuple-like equality", "class P:\n    def __init__(self, a, b): self._a, self._b = a, b\n"
     "    def __eq__(self, o): return (self._a, self._b) == (tuple(o) if not isinstance(o, P) else "
     "(o._a, o._b))\ndef make(a, b): return P(a, b)", "assert make(1, 'x') == (1, 'x')\n"
     "assert make(1, 'x') != (1, 'y') and make(1, 2) == make(1, 2)"),
    ("case-blind string", "class Name(str):\n    def __eq__(self, o): return self.lower() == o.lower()\n"
     "    def __hash__(self): return hash(self.lower())\n    def shout(self): return self.upper() + '!'",
     "n = Name('Ada')\nassert n.shout() == 'ADA!' and n == 'ADA' and n != 'Bob' and len(n) == 3\n"
     "assert isinstance(n, str) and n[1:] == 'da' and 'd' in n"),
    ("list subclass", "class Bag(list):\n    def total(self): return sum(self)\n"
     "    def append(self, x): super().append(x * 10)\ndef bag(*xs): return Bag(xs)",
     "b = bag(1, 2)\nassert b == [1, 2] and b.total() == 3 and isinstance(b, list)\nb.append(3)\n"
     "assert b == [1, 2, 30] and b[-1] == 30 and len(b) == 3 and sorted(b, reverse=True)[0] == 30\n"
     "b.extend([4]); assert b.total() == 37"),
    ("dict subclass", "class Attr(dict):\n    def __getattr__(self, k): return self[k]\n"
     "    def __missing__(self, k): return k * 2",
     "a = Attr(x=1)\nassert a.x == 1 and a == {'x': 1} and a['q'] == 'qq' and list(a) == ['x']\n"
     "a['y'] = 5\nassert a.y == 5 and len(a) == 2"),
    ("int subclass", "class Mod7(int):\n    def __new__(cls, n): return super().__new__(cls, n % 7)\n"
     "    def __add__(self, o): return Mod7(int(self) + int(o))\n    def __repr__(self): return f'{int(self)} mod 7'",
     "assert Mod7(10) == 3 and Mod7(5) + Mod7(4) == 2 and repr(Mod7(9)) == '2 mod 7'\n"
     "assert Mod7(5) + 4 == Mod7(2) and isinstance(Mod7(1), int)"),
    ("named tuple class", "from typing import NamedTuple\nclass Pt(NamedTuple):\n    x: int\n    y: int = 0\n"
     "    def norm1(self): return abs(self.x) + abs(self.y)",
     "p = Pt(3, -4)\nassert p.norm1() == 7 and p == (3, -4) and p._replace(x=1) == Pt(1, -4)\n"
     "x, y = p; assert (x, y) == (3, -4) and Pt(1).y == 0 and p._asdict() == {'x': 3, 'y': -4}\n"
     "assert repr(p) == 'Pt(x=3, y=-4)' and hash(p) == hash((3, -4)) and isinstance(p, Pt)"),
    ("dataclass", "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass Item:\n"
     "    price: float\n    name: str = field(compare=False)\n    tags: list = field(default_factory=list)",
     "import dataclasses\na, b = Item(1.5, 'a'), Item(2.5, 'b', ['t'])\nassert a < b and max(a, b) is b\n"
     "assert dataclasses.asdict(b) == {'price': 2.5, 'name': 'b', 'tags': ['t']}\n"
     "assert Item(1.5, 'z') == a and repr(a) == \"Item(price=1.5, name='a', tags=[])\"\n"
     "assert [i.name for i in sorted([b, a])] == ['a', 'b'] and dataclasses.replace(a, name='q').name == 'q'"),
    ("frozen dataclass", "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass K:\n    a: int\n    b: str",
     "import dataclasses\nassert {K(1, 'x'): 2}[K(1, 'x')] == 2 and len({K(1, 'x'), K(1, 'x'), K(2, 'x')}) == 2\n"
     "try:\n    K(1, 'x').a = 3\n    assert False\nexcept dataclasses.FrozenInstanceError:\n    pass"),
    ("enum", "from enum import Enum, IntEnum, auto\nclass Color(Enum):\n    RED = 1\n    BLUE = 'b'\n"
     "class Level(IntEnum):\n    LOW = auto()\n    HIGH = auto()\ndef pick(x): return Color(x)",
     "assert pick(1) is Color.RED and Color['BLUE'].value == 'b' and Color.RED != Color.BLUE\n"
     "assert [c.name for c in Color] == ['RED', 'BLUE'] and Level.HIGH > Level.LOW and Level.HIGH == 2\n"
     "assert len(Color) == 2 and isinstance(pick(1), Color) and {Color.RED: 1}[pick(1)] == 1"),
    ("properties", "class T:\n    def __init__(self, c): self._c = c\n    @property\n    def f(self): return "
     "self._c * 9 / 5 + 32\n    @f.setter\n    def f(self, v): self._c = (v - 32) * 5 / 9\n"
     "    @classmethod\n    def of(cls, f): t = cls(0); t.f = f; return t\n    @staticmethod\n    def zero(): return -273.15",
     "t = T(100)\nassert t.f == 212\nt.f = 32\nassert t._c == 0 and T.of(212)._c == 100 and T.zero() == -273.15"),
    ("abstract", "from abc import ABC, abstractmethod\nclass Shape(ABC):\n    @abstractmethod\n    def area(self): ...\n"
     "class Sq(Shape):\n    def __init__(self, s): self.s = s\n    def area(self): return self.s ** 2",
     "assert Sq(3).area() == 9 and isinstance(Sq(1), Shape) and issubclass(Sq, Shape)\n"
     "try:\n    Shape()\n    assert 0\nexcept TypeError as e:\n    assert 'abstract' in str(e)"),
    ("inheritance", "class A:\n    tag = 'a'\n    def who(self): return type(self).__name__ + self.tag\n"
     "class B(A):\n    tag = 'b'", "assert A().who() == 'Aa' and B().who() == 'Bb' and B.tag == 'b'\n"
     "assert B.__name__ == 'B' and type(B()) is B and B.__mro__[1] is A and isinstance(B(), A)"),
    ("singleton", "class S:\n    _one = None\n    def __new__(cls):\n        if cls._one is None: cls._one = "
     "super().__new__(cls)\n        return cls._one", "assert S() is S()"),
    ("iterator class", "class Down:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n"
     "    def __next__(self):\n        if self.n == 0: raise StopIteration\n        self.n -= 1\n        return self.n",
     "assert list(Down(3)) == [2, 1, 0] and sum(Down(4)) == 6 and next(iter(Down(1))) == 0\n"
     "d = Down(1); next(d)\ntry:\n    next(d); assert False\nexcept StopIteration:\n    pass"),
    ("sequence class", "class Sq:\n    def __len__(self): return 4\n    def __getitem__(self, i):\n"
     "        if isinstance(i, slice): return [self[j] for j in range(*i.indices(4))]\n"
     "        if i >= 4: raise IndexError(i)\n        return i * i",
     "assert list(Sq()) == [0, 1, 4, 9] and Sq()[1:3] == [1, 4] and 9 in Sq() and 5 not in Sq()\n"
     "assert list(reversed(Sq())) == [9, 4, 1, 0]"),
    ("mapping class", "from collections.abc import MutableMapping\nclass Low(MutableMapping):\n"
     "    def __init__(self): self.d = {}\n    def __getitem__(self, k): return self.d[k.lower()]\n"
     "    def __setitem__(self, k, v): self.d[k.lower()] = v\n    def __delitem__(self, k): del self.d[k.lower()]\n"
     "    def __iter__(self): return iter(self.d)\n    def __len__(self): return len(self.d)",
     "m = Low(); m['A'] = 1; m.update(B=2)\nassert m['a'] == 1 and 'b' in m and len(m) == 2 and dict(m) == "
     "{'a': 1, 'b': 2}\ndel m['B']\nassert list(m.items()) == [('a', 1)] and m.get('zz', 0) == 0"),
    ("interval contains", "class Interval:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
     "    def __contains__(self, x): return self.a <= x <= self.b",
     "i = Interval(1, 10)\nassert 5 in i and 11 not in i and i.a == 1"),
    ("callable object", "class Poly:\n    def __init__(self, *c): self.c = c\n    def __call__(self, x):\n"
     "        return sum(a * x ** i for i, a in enumerate(self.c))", "p = Poly(1, 2, 3)\nassert p(2) == 17 and "
     "[*map(p, [0, 1])] == [1, 6] and callable(p)"),
    ("format and str", "class H:\n    def __init__(self, n): self.n = n\n    def __format__(self, spec): return "
     "format(self.n, spec or 'd') + 'h'\n    def __str__(self): return f'H{self.n}'",
     "assert f'{H(5)}' == '5h' and f'{H(5):03d}' == '005h' and str(H(2)) == 'H2' and '%s' % H(1) == 'H1'"),
    ("number protocol", "class N:\n    def __init__(self, v): self.v = v\n    def __int__(self): return int(self.v)\n"
     "    def __float__(self): return float(self.v)\n    def __index__(self): return int(self.v)\n"
     "    def __round__(self, n=0): return round(self.v, n)\n    def __mod__(self, o): return self.v % o\n"
     "    def __pow__(self, o): return self.v ** o\n    def __lt__(self, o): return self.v < o.v",
     "n = N(7.75)\nassert int(n) == 7 and float(n) == 7.75 and round(n, 1) == 7.8 and [0, 1, 2][N(2)] == 2\n"
     "assert N(7) % 4 == 3 and N(2) ** 5 == 32 and n.v == 7.75 and min(N(3), N(1)).v == 1"),
    ("linked list", "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
     "def rev(h):\n    p = None\n    while h: h.next, p, h = p, h, h.next\n    return p",
     "h = rev(Node(1, Node(2, Node(3))))\nout = []\nwhile h: out.append(h.v); h = h.next\nassert out == [3, 2, 1]"),
    ("tree", "class T:\n    def __init__(self, v, l=None, r=None): self.v, self.l, self.r = v, l, r\n"
     "def build(xs):\n    if not xs: return None\n    m = len(xs) // 2\n    return T(xs[m], build(xs[:m]), build(xs[m+1:]))\n"
     "def walk(t): return walk(t.l) + [t.v] + walk(t.r) if t else []",
     "t = build([1, 2, 3, 4])\nassert walk(t) == [1, 2, 3, 4] and t.v == 3 and t.l.l.v == 1 and t.r.r is None"),
    ("slots", "class S:\n    __slots__ = ('a',)\n    def __init__(self): self.a = 1\n",
     "s = S()\nassert s.a == 1\ntry:\n    s.b = 2\n    assert False\nexcept AttributeError:\n    pass"),
    ("descriptor", "class Pos:\n    def __set_name__(self, o, n): self.n = '_' + n\n    def __get__(self, i, o): "
     "return getattr(i, self.n)\n    def __set__(self, i, v):\n        if v < 0: raise ValueError('negative')\n"
     "        setattr(i, self.n, v)\nclass A:\n    n = Pos()\n    def __init__(self, n): self.n = n",
     "a = A(3); a.n = 4\nassert a.n == 4\ntry:\n    a.n = -1\n    assert False\nexcept ValueError as e:\n"
     "    assert str(e) == 'negative'"),
    # --- exceptions ------------------------------------------------------------------------------
    ("own exception", "class TooBig(Exception):\n    def __init__(self, n, limit): super().__init__(n, limit); "
     "self.n = n\nclass WayTooBig(TooBig): pass\ndef f(n):\n    if n > 99: raise WayTooBig(n, 9)\n"
     "    if n > 9: raise TooBig(n, 9)\n    return n",
     "assert f(3) == 3\ntry:\n    f(12)\n    assert False\nexcept WayTooBig:\n    assert False\nexcept TooBig as e:\n"
     "    assert e.args == (12, 9) and e.n == 12 and isinstance(e, TooBig)\ntry:\n    f(100); assert 0\nexcept TooBig as e:\n"
     "    assert type(e) is WayTooBig"),
    ("args of exceptions", "def f(d, k):\n    if k not in d: raise KeyError(k, 'missing')\n    return d[k]",
     "try:\n    f({}, 'x')\n    assert False\nexcept KeyError as e:\n    assert e.args == ('x', 'missing')\n"
     "try:\n    {}['q']; assert 0\nexcept LookupError as e:\n    assert str(e) == \"'q'\""),
    ("exception chain", "def f(x):\n    try: return int(x)\n    except ValueError as e: raise RuntimeError('bad') from e",
     "try:\n    f('z')\n    assert False\nexcept RuntimeError as e:\n    assert isinstance(e.__cause__, ValueError) and "
     "e.args == ('bad',)"),
    ("assertRaises", "class E(ValueError):\n    code = 7\ndef f(): raise E('no')\ndef g(x): return 1 / x",
     "import unittest\nt = unittest.TestCase()\nwith t.assertRaises(E) as c: f()\nassert c.exception.code == 7\n"
     "with t.assertRaisesRegex(ZeroDivisionError, 'zero'): g(0)\nt.assertEqual(g(2), 0.5)"),
    ("exception of the standard library", "import json\ndef f(s): return json.loads(s)",
     "import json\nassert f('[1]') == [1]\ntry:\n    f('{')\n    assert False\nexcept json.JSONDecodeError as e:\n"
     "    assert e.pos == 1"),
    ("retry", "def retry(n):\n    def deco(f):\n        def run(*a):\n            for i in range(n):\n"
     "                try: return f(*a)\n                except ConnectionError:\n                    if i == n - 1: raise\n"
     "        return run\n    return deco",
     "calls = []\n@retry(3)\ndef flaky(x):\n    calls.append(x)\n    if len(calls) < 3: raise ConnectionError('down')\n"
     "    return x * 2\nassert flaky(4) == 8 and calls == [4, 4, 4]"),
    ("error of the tests passes through", "def guard(f):\n    try: return f()\n    finally: log.append(1)\nlog = []",
     "class Mine(Exception): pass\ndef bad(): raise Mine('x')\ntry:\n    guard(bad)\n    assert False\nexcept Mine as e:\n"
     "    assert e.args == ('x',)\nassert log == [1]"),
    ("suppressing manager", "class Ignore:\n    def __init__(self, *k): self.k, self.seen = k, []\n"
     "    def __enter__(self): return self\n    def __exit__(self, t, v, tb):\n        self.seen.append(t and t.__name__)\n"
     "        return t is not None and issubclass(t, self.k)",
     "with Ignore(KeyError) as i:\n    {}['x']\nassert i.seen == ['KeyError']\ntry:\n    with Ignore(KeyError):\n        1 / 0\n"
     "    assert False\nexcept ZeroDivisionError:\n    pass"),
    ("generator manager", "from contextlib import contextmanager\nlog = []\n@contextmanager\ndef step(name):\n"
     "    log.append('in ' + name)\n    try: yield name.upper()\n    except ValueError: log.append('caught')\n"
     "    finally: log.append('out')",
     "with step('a') as n:\n    assert n == 'A'\n    raise ValueError\nassert log == ['in a', 'caught', 'out']"),
    # --- arguments and identity ------------------------------------------------------------------
    ("in place", "def swap(xs, i, j): xs[i], xs[j] = xs[j], xs[i]\ndef sort(xs): xs.sort(); return xs",
     "xs = [3, 1, 2]\nassert swap(xs, 0, 2) is None and xs == [2, 1, 3]\nassert sort(xs) is xs and xs == [1, 2, 3]"),
    ("same list twice", "def f(a, b):\n    a.append(1)\n    return len(b), a is b",
     "x = []\nassert f(x, x) == (1, True) and x == [1]\nassert f([], []) == (0, False)"),
    ("rows that are one row", "def fill(g): g[0][0] = 9; return g",
     "row = [0, 0]; g = [row, row]\nassert fill(g) == [[9, 0], [9, 0]] and g[1] is row and row == [9, 0]"),
    ("kept argument", "class Keep:\n    def __init__(self, xs): self.xs = xs\n    def add(self, x): self.xs.append(x)",
     "mine = [1]\nk = Keep(mine)\nk.add(2)\nassert mine == [1, 2]\nmine.append(3)\nassert k.xs == [1, 2, 3] and k.xs is mine"),
    ("cyclic data", "def loop():\n    a = [1]\n    a.append(a)\n    return a",
     "a = loop()\nassert a[1] is a and a[1][1][0] == 1 and len(a) == 2"),
    ("dictionary views", "def keys(d): return d.keys()\ndef items(d): return d.items()\ndef values(d): return d.values()",
     "d = {'a': 1, 'b': 2}\nassert keys(d) == {'a', 'b'} and ('a', 1) in items(d) and sorted(values(d)) == [1, 2]\n"
     "assert keys(d) & {'a'} == {'a'} and len(items(d)) == 2 and list(keys(d)) == ['a', 'b']"),
    ("default argument that grows", "def add(x, seen=[]):\n    seen.append(x)\n    return seen",
     "a = add(1)\nb = add(2)\nassert a is b and a == [1, 2]"),
    ("deque and counter", "from collections import deque, Counter\ndef last(xs, n): return deque(xs, maxlen=n)\n"
     "def rotate(d, n): d.rotate(n)\ndef top(s): return Counter(s).most_common(1)[0]",
     "from collections import deque\nd = last(range(9), 3)\nassert d == deque([6, 7, 8]) and d.maxlen == 3\nrotate(d, 1)\n"
     "assert list(d) == [8, 6, 7] and top('abca') == ('a', 2)"),
    ("ordered dict", "from collections import OrderedDict\nclass LRU:\n    def __init__(self, n): self.n, self.d = n, OrderedDict()\n"
     "    def get(self, k):\n        if k not in self.d: return -1\n        self.d.move_to_end(k)\n        return self.d[k]\n"
     "    def put(self, k, v):\n        self.d[k] = v; self.d.move_to_end(k)\n        if len(self.d) > self.n: self.d.popitem(False)",
     "c = LRU(2)\nc.put(1, 'a'); c.put(2, 'b'); c.get(1); c.put(3, 'c')\nassert c.get(2) == -1 and list(c.d) == [1, 3]"),
    # --- generators, functions handed over -------------------------------------------------------
    ("generators", "def chunks(xs, n):\n    for i in range(0, len(xs), n): yield xs[i:i + n]\ndef primes():\n    n = 2\n"
     "    while True:\n        if all(n % p for p in range(2, int(n ** .5) + 1)): yield n\n        n += 1",
     "import itertools, types\nassert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]\n"
     "assert list(itertools.islice(primes(), 5)) == [2, 3, 5, 7, 11] and isinstance(primes(), types.GeneratorType)"),
    ("send", "def avg():\n    total, n, x = 0, 0, None\n    while True:\n        x = yield (total / n if n else None)\n"
     "        if x is None: return total\n        total += x; n += 1",
     "g = avg(); next(g)\nassert g.send(10) == 10 and g.send(20) == 15\ntry:\n    g.send(None); assert False\n"
     "except StopIteration as e:\n    assert e.value == 30"),
    ("takes a generator", "def total(xs): return sum(xs)\ndef first(it, n): return [next(it) for _ in range(n)]",
     "import itertools\nassert total(x * x for x in range(4)) == 14 and first(itertools.count(5), 2) == [5, 6]\n"
     "assert total(map(int, '123')) == 6 and total(iter([1])) == 1"),
    ("takes functions", "def compose(*fs):\n    def run(x):\n        for f in reversed(fs): x = f(x)\n        return x\n    return run\n"
     "def apply(f, *a, **k): return f(*a, **k)",
     "import operator, math\nassert compose(str, lambda x: x + 1)(4) == '5' and apply(operator.add, 2, 3) == 5\n"
     "assert apply(math.sqrt, 16) == 4 and apply(sorted, [2, 1], reverse=True) == [2, 1] and apply(str.upper, 'a') == 'A'"),
    ("curry", "import inspect\ndef curry(f, *got):\n    n = len(inspect.signature(f).parameters)\n"
     "    return f(*got) if len(got) >= n else lambda *a: curry(f, *got, *a)",
     "assert curry(lambda a, b, c: a + b * c)(1)(2)(3) == 7 and curry(lambda: 5) == 5"),
    ("decorator keeps the name", "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def run(*a): return f(f(*a))\n    return run",
     "@twice\ndef inc(x):\n    '''adds one'''\n    return x + 1\nassert inc(1) == 3 and inc.__name__ == 'inc' and inc.__doc__ == 'adds one'"),
    ("object of the tests", "def total(shapes): return sum(s.area() for s in shapes)\ndef rename(p): p.name = p.name.upper()\n"
     "def oldest(ps): return max(ps, key=lambda p: p.age)",
     "class Sq:\n    def __init__(self, s, name='q', age=1): self.s, self.name, self.age = s, name, age\n    def area(self): return self.s ** 2\n"
     "a, b = Sq(2), Sq(3, age=5)\nassert total([a, b]) == 13 and oldest([a, b]) is b\nrename(a)\nassert a.name == 'Q'"),
    ("file-like argument", "def count(f): return sum(1 for line in f if line.strip())\ndef copy(src, dst): dst.write(src.read()[::-1])",
     "import io\nassert count(io.StringIO('a\\n\\nb\\n')) == 2\nout = io.StringIO()\ncopy(io.StringIO('abc'), out)\nassert out.getvalue() == 'cba'"),
    ("callback order", "def walk(t, visit):\n    for k in t: visit(k); walk(t[k], visit)",
     "seen = []\nwalk({'a': {'b': {}}, 'c': {}}, seen.append)\nassert seen == ['a', 'b', 'c']"),
    ("mock", "def notify(users, send):\n    for u in users: send(u, msg='hi')\n    return len(users)",
     "from unittest import mock\ns = mock.Mock()\nassert notify(['a', 'b'], s) == 2\ns.assert_called_with('b', msg='hi')\nassert s.call_count == 2"),
    ("async", "import asyncio\nasync def work(n):\n    await asyncio.sleep(0.001)\n    return n * 2\nasync def both(): return "
     "await asyncio.gather(work(1), work(2))", "import asyncio\nassert asyncio.run(work(4)) == 8 and asyncio.run(both()) == [2, 4]\n"
     "async def main(): return [await work(i) for i in range(2)]\nassert asyncio.run(main()) == [0, 2]"),
    ("async generator", "async def ticks(n):\n    for i in range(n): yield i\nclass Res:\n    async def __aenter__(self): self.on = True; "
     "return self\n    async def __aexit__(self, *e): self.on = False",
     "import asyncio\nasync def main():\n    async with Res() as r:\n        assert r.on\n    assert not r.on\n"
     "    return [x async for x in ticks(3)]\nassert asyncio.run(main()) == [0, 1, 2]"),
    # --- the surroundings ------------------------------------------------------------------------
    ("guard under tests", "import sys\ndef f(x): return x + 1\nif __name__ == '__main__':\n    n = int(input())\n    print(f(n))\n    sys.exit(3)",
     "assert f(1) == 2"),
    ("unittest at the end", "import unittest\ndef f(x): return x * 2\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(2), 4)\n"
     "if __name__ == '__main__':\n    unittest.main()", "assert f(3) == 6"),
    ("argument parser", "import argparse\ndef parse(argv=None):\n    p = argparse.ArgumentParser()\n    p.add_argument('--n', type=int, default=3)\n"
     "    return p.parse_args(argv)\nargs = parse()", "assert args.n == 3 and parse(['--n', '5']).n == 5 and vars(parse([])) == {'n': 3}"),
    ("its own file", "import os\nhere = os.path.dirname(os.path.abspath(__file__))\ntext = open(__file__).read()\n"
     "def lines(): return len(text.splitlines())", "assert lines() == 4"),
    ("its own source", "import inspect\ndef f(x):\n    return x + 1\ndef source(): return inspect.getsource(f)",
     "import inspect\nassert source() == 'def f(x):\\n    return x + 1\\n' and inspect.getsource(f) == source()\n"
     "assert list(inspect.signature(f).parameters) == ['x']"),
    ("files", "import os, tempfile, json\ndef save(name, data):\n    with open(name, 'w') as f: json.dump(data, f)\ndef load(name):\n"
     "    with open(name) as f: return json.load(f)\ndef temp():\n    with tempfile.TemporaryDirectory() as d:\n"
     "        open(os.path.join(d, 'x'), 'w').write('y')\n        return os.listdir(d)",
     "save('a.json', {'k': [1]})\nassert load('a.json') == {'k': [1]} and temp() == ['x']"),
    ("own module", "open('helper.py', 'w').write('def g(x): return x * 3')\nimport helper\ndef f(x): return helper.g(x)", "assert f(2) == 6"),
    ("threads", "import threading, queue\nfrom concurrent.futures import ThreadPoolExecutor\ndef squares(n):\n"
     "    with ThreadPoolExecutor(4) as p: return list(p.map(lambda x: x * x, range(n)))", "assert squares(5) == [0, 1, 4, 9, 16]"),
    ("printing is tested", "def hello(n): print('hello', n)\ndef ask(): return int(input('n? ')) + 1",
     "import io, contextlib\nfrom unittest import mock\nbuf = io.StringIO()\nwith contextlib.redirect_stdout(buf): hello('x')\n"
     "assert buf.getvalue() == 'hello x\\n'\nwith mock.patch('builtins.input', return_value='4'): assert ask() == 5"),
    ("random with a seed", "import random\ndef draw(seed):\n    r = random.Random(seed)\n    return [r.randint(1, 6) for _ in range(3)]",
     "import random\nr = random.Random(5)\nassert draw(5) == [r.randint(1, 6) for _ in range(3)] and draw(1) == draw(1)"),
    ("regular expressions", "import re\ndef find(s): return re.search(r'(?P<y>\\d{4})-(\\d\\d)', s)\nWORD = re.compile('[a-z]+')",
     "m = find('on 2024-05')\nassert m and m.group('y') == '2024' and m.groups() == ('2024', '05') and m.span() == (3, 10)\n"
     "assert find('x') is None and WORD.findall('ab 1 c') == ['ab', 'c']"),
    ("typing and generics", "from typing import Generic, TypeVar, Optional\nT = TypeVar('T')\nclass Maybe(Generic[T]):\n"
     "    def __init__(self, v: Optional[T] = None): self.v = v\n    def map(self, f): return Maybe(f(self.v)) if self.v is not None else self\n"
     "    def __eq__(self, o): return isinstance(o, Maybe) and self.v == o.v",
     "assert Maybe(2).map(lambda x: x + 1) == Maybe(3) and Maybe().map(str) == Maybe() and Maybe[int](4).v == 4"),
    # --- programs that read and print ------------------------------------------------------------
    ("print: sum", "print(sum(map(int, open(0).read().split())))", ("1 2\n3\n", "6\n")),
    ("print: deep recursion in a big stack", "import sys, threading\nsys.setrecursionlimit(1 << 20)\nthreading.stack_size(1 << 29)\n"
     "def f(n): return 0 if n == 0 else 1 + f(n - 1)\ndef main(): print(f(int(input())))\n"
     "t = threading.Thread(target=main)\nt.start()\nt.join()", ("20000\n", "20000\n")),
    ("print: a file not closed", "import os\nout = os.fdopen(1, 'w')\nout.write(input()[::-1])", ("abc", "cba")),
    ("print: exit functions and destructors", "import atexit\nclass D:\n    def __del__(self): print('gone')\nd = D()\natexit.register(print, 'bye')\n"
     "print('hi')", ("", "hi\nbye\ngone\n")),
    ("print: main guard and argv", "import sys\ndef main(argv):\n    assert len(argv) == 1\n    print(input())\n    return 0\n"
     "if __name__ == '__main__':\n    sys.exit(main(sys.argv))", ("x", "x")),
    ("print: until the end of input", "import os, sys\ntry:\n    while True: print(int(input()) * 2)\nexcept EOFError:\n    sys.stdout.flush()\n    os._exit(0)",
     ("1\n2", "2\n4")),
    ("print: fast output", "import sys\ninput = sys.stdin.readline\nn = int(input())\nsys.stdout.write('\\n'.join(map(str, range(n))))",
     ("3\n", "0\n1\n2")),
    ("print: bytes", "import sys\ndata = sys.stdin.buffer.read().split()\nsys.stdout.buffer.write(b' '.join(sorted(data)))", ("b a", "a b")),
]  # fmt: skip

RIGHT += [
    ("operators by hand", "class B:\n    def __init__(self, n): self.n = n\n    def __and__(self, o): return B(self.n & o.n)\n"
     "    def __or__(self, o): return B(self.n | o.n)\n    def __xor__(self, o): return B(self.n ^ o.n)\n    def __invert__(self): return B(~self.n)\n"
     "    def __lshift__(self, k): return B(self.n << k)\n    def __divmod__(self, k): return divmod(self.n, k)\n    def __pos__(self): return self.n\n"
     "    def __iadd__(self, k): self.n += k; return self\n    def __bytes__(self): return bytes([self.n])",
     "b = B(6)\nassert (b & B(3)).n == 2 and (b | B(1)).n == 7 and (b ^ B(5)).n == 3 and (~b).n == -7\n"
     "assert (b << 2).n == 24 and divmod(b, 4) == (1, 2) and +b == 6 and bytes(B(65)) == b'A'\nc = b\nb += 4\nassert b.n == 10 and c is b"),
    ("class built at run time", "def make(name, **ms): return type(name, (), ms)\nDog = make('Dog', speak=lambda self: 'woof', legs=4)",
     "assert Dog().speak() == 'woof' and Dog.legs == 4 and Dog.__name__ == 'Dog' and type(Dog()).__name__ == 'Dog'"),
    ("metaclass registry", "class Reg(type):\n    all = {}\n    def __new__(m, n, b, d):\n        c = super().__new__(m, n, b, d)\n        Reg.all[n] = c\n"
     "        return c\nclass Base(metaclass=Reg): pass\nclass A(Base): x = 1", "assert sorted(Reg.all) == ['A', 'Base'] and Reg.all['A'] is A and A.x == 1"),
]  # fmt: skip

_EQ = "assert f(3) == 9 and f(4) == 16"
_LIAR = (
    "    def __ne__(self, o): return False\n    def __hash__(self): return 9\ndef f(x): return L()"
)

WRONG: list[Case] = [
    # --- honest mistakes -------------------------------------------------------------------------
    ("off by one", "def f(x): return x * x - 1", _EQ),
    ("returns nothing", "def f(x): x * x", _EQ),
    ("prints instead", "def f(x): print(x * x)", _EQ),
    ("wrong type", "def f(x): return str(x * x)", _EQ),
    ("only the first", "def f(x): return 9", _EQ),
    ("wrong name", "def g(x): return x * x", _EQ),
    ("syntax", "def f(x) return x * x", _EQ),
    ("endless", "def f(x):\n    while True: pass", _EQ),
    ("endless recursion", "def f(x): return f(x)", _EQ),
    ("raises", "def f(x): raise ValueError(x)", _EQ),
    ("changes a copy", "def sort(xs): xs = sorted(xs)", "xs = [2, 1]\nsort(xs)\nassert xs == [1, 2]"),
    ("tuple for list", "def f(n): return tuple(range(n))", "assert f(2) == [0, 1]"),
    ("generator for list", "def f(n): yield from range(n)", "assert f(2) == [0, 1]"),
    ("values for list", "def f(d): return d.values()", "assert f({1: 2}) == [2]"),
    ("keys out of order", "def f(d): return list(d)[::-1]", "assert f({1: 2, 3: 4}) == [1, 3]"),
    ("class without equality", "class P:\n    def __init__(self, x): self.x = x", "assert P(1) == P(1)"),
    ("equality of another field", "class P:\n    def __init__(self, x, y): self.x, self.y = x, y\n    def __eq__(self, o): return self.x == o.x",
     "assert P(1, 2) == P(1, 2)\nassert P(1, 2) != P(1, 3)"),
    ("hash missing", "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x", "assert len({P(1), P(1)}) == 1"),
    ("shared default", "def add(x, seen=[]):\n    seen.append(x)\n    return seen", "assert add(1) == [1] and add(2) == [2]"),
    ("rows shared", "def grid(n): return [[0] * n] * n", "g = grid(2)\ng[0][0] = 1\nassert g == [[1, 0], [0, 0]]"),
    ("swallows nothing", "class Ignore:\n    def __enter__(self): return self\n    def __exit__(self, *e): pass", "with Ignore():\n    1 / 0"),
    ("other exception", "class E(Exception): pass\ndef f(): raise KeyError(1)", "try:\n    f()\nexcept E:\n    pass"),
    ("wrong args", "def f(): raise ValueError('a')", "try:\n    f()\nexcept ValueError as e:\n    assert e.args == ('b',)"),
    ("timedelta an hour off", "from datetime import timedelta\ndef f(): return timedelta(hours=23)", "from datetime import timedelta\nassert f() == timedelta(days=1)"),
    ("list subclass, other contents", "class L(list): pass\ndef f(): return L([1])", "assert f() == [2]"),
    ("keeps a copy", "class K:\n    def __init__(self, xs): self.xs = list(xs)", "xs = []\nk = K(xs)\nxs.append(1)\nassert k.xs == [1]"),
    ("memory", "def f(x): return len(bytearray(10**10)) and x * x", _EQ),
    ("leaves", "import sys\ndef f(x): sys.exit(0)", _EQ),
    ("leaves at once", "import os\ndef f(x): os._exit(0)", _EQ),
    ("leaves before", "import sys\ndef f(x): return x * x\nsys.exit()", _EQ),
    # --- answers that claim to be right ----------------------------------------------------------
    ("equal to anything", "class L:\n    def __eq__(self, o): return True\n" + _LIAR, _EQ),
    ("equal to any number", "class L:\n    def __eq__(self, o): return isinstance(o, int)\n" + _LIAR, _EQ),
    ("an int that lies", "class L(int):\n    def __eq__(self, o): return True\n" + _LIAR, _EQ),
    ("a list that lies", "class L(list):\n    def __eq__(self, o): return True\n    __len__ = lambda self: 3\n" + _LIAR, "assert f(1) == [1, 2, 3]"),
    ("a string that lies", "class L(str):\n    def __eq__(self, o): return True\n    __contains__ = startswith = __eq__\n" + _LIAR,
     "assert f(1) == 'abc' or f(1).startswith('abc')"),
    ("close to any number", "class L:\n    def __sub__(self, o): return self\n    __rsub__ = __sub__\n    def __abs__(self): return 0.0\n    def __eq__(self, o): return True\n"
     + _LIAR, "assert abs(f(3) - 9.5) < 1e-6"),
    ("contains anything", "class L:\n    def __contains__(self, o): return True\n    def __eq__(self, o): return True\n" + _LIAR, "assert 9 in f(3)"),
    ("a class instead of a function", "class f:\n    def __init__(self, x): pass\n    def __eq__(self, o): return True\n    __hash__ = None", _EQ),
    ("equal to any of its kind", "class P:\n    def __init__(self, *a): self.a = a\n    def __eq__(self, o): return isinstance(o, P)\ndef make(): return P(5)",
     "assert make() == P(1, 2)"),
    ("a class that equals anything", "class P:\n    def __init__(self, a): self.a = a\n    def get(self): return self\n    def __eq__(self, o): return True",
     "assert P(1).get() == 5"),
    ("dataclass that lies", "from dataclasses import dataclass\n@dataclass(eq=False)\nclass P:\n    x: int = 0\n    def __eq__(self, o): return True\n    def area(self): return self",
     "assert P(2).area() == 4"),
    ("guesses by two kinds", "class L:\n    def __init__(self): self.n = iter(range(100))\n    def __eq__(self, o): return o == next(self.n)\n" + _LIAR, "assert f(3) in (9, 10)"),
    ("every truth at once", "class L:\n    a, b = True, False\n    def __eq__(self, o): return True\n    def __bool__(self): return True\n" + _LIAR,
     "assert f(7) == True and f(8) == False"),
    # --- loops that end too early, helpers, arguments --------------------------------------------
    ("ends a map", "def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x * x, [1, 2, 3]))"),
    ("ends a map directly", "def f(x): raise StopIteration(x)", "assert list(map(f, [])) == [] and sum(map(f, [1, 2])) == 0"),
    ("ends a filter in a class", "class F:\n    def ok(self, x): raise StopIteration", "assert all(filter(None, map(F().ok, [1])))"),
    ("ends a zip of results", "def f(x): raise StopIteration", "assert all(a == b for a, b in zip(map(f, [1, 2]), [1, 4]))"),
    ("a helper that agrees", "def near(a, b): return True\ndef f(x): return 0", "assert near(f(3), 9)"),
    ("a checker that agrees", "def valid(x): return 1\ndef solve(xs): return []", "assert valid(solve([3, 1]))"),
    ("its own sorted", "def sorted(xs): return [1, 2]\ndef list(xs): return xs", "assert sorted(list((3, 4))) == [3, 4]"),
    ("its own abs and round", "def sum(a, b): return 0\ndef abs(x): return 0\ndef round(x, n=0): return 3", "assert round(abs(sum(1, 2) - 3), 3) == 0 and abs(sum(4, 5) - 9) < 1e-9"),
    ("empties its argument", "def f(xs):\n    xs.clear()\n    return xs", "xs = [3, 1, 2]\nassert f(xs) == sorted(xs)"),
    ("makes its argument the answer", "def top(xs):\n    xs[:] = [0]\n    return 0", "xs = [3, 1]\nassert top(xs) == max(xs)"),
    ("round trip of nothing", "def enc(xs): xs.clear(); return []\ndef dec(xs): return []", "data = [1, 2]\nassert dec(enc(data)) == data"),
    # --- a verdict of its own --------------------------------------------------------------------
    ("print: hides an error", "import atexit, os\natexit.register(os._exit, 0)\nprint(input(), flush=True)\n1 / 0", ("7", "7")),
    ("print: says it is done", "import os, json\nprint(input(), flush=True)\nbody = json.dumps({'value': None}).encode()\nos.write(3, len(body).to_bytes(4, 'big') + body)\n"
     "raise SystemExit(4)", ("7", "7")),
    ("print: says it is done and stays", "import os, json\nprint(input(), flush=True)\nbody = json.dumps({'value': None}).encode()\nos.write(3, len(body).to_bytes(4, 'big') + body)\n"
     "while True: pass", ("7", "7")),
    ("print: one line too many", "print(input())\nprint('debug')", ("7", "7")),
    ("answers for the sandbox", "import gc\nfor t in gc.get_objects():\n    if type(t).__name__ == 'ProgramSide':\n        type(t).answer = lambda *a: {'value': True}\ndef f(x): return 0", _EQ),
    ("claims for the sandbox", "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'claim'): m.claim = lambda v, k: (9,)\n    ops = getattr(m, '_OPERATIONS', None)\n"
     "    if isinstance(ops, dict) and 'equal' in ops:\n        ops['equal'] = ops['isinstance'] = lambda *a: True\n        ops['claim'] = lambda v, k: (9,)\n"
     "class L:\n    def __eq__(self, o): return True\n" + _LIAR, _EQ),
]  # fmt: skip
