"""The libraries that blocks find already imported, and exercised: a first call would cost every session anew."""

import ctypes
import gc
import importlib.util
import os
import site
import sys
import sysconfig

NAMES = ("numpy", "sympy", "scipy", "pandas")
LARGE = ("scipy", "pandas")
"""Those that make every fork more expensive and that few blocks use."""
COLLAPSE = 25
"""madvise(2): MADV_COLLAPSE, Linux 6.1 and later."""
HUGE_PAGE = 2 << 20


def search_path() -> list[str]:
    """The folders that this interpreter finds NAMES in, wherever its environment makes it look."""
    specs = [importlib.util.find_spec(name) for name in NAMES]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    return list(dict.fromkeys(os.path.dirname(os.path.dirname(origin)) for origin in origins))


def folders() -> list[str]:
    """The folders that this interpreter imports the standard library, and NAMES with what they need, from."""
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")]
    found += [*site.getsitepackages(), *search_path()]
    return [folder for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def import_and_exercise(wanted: list[str]) -> list[str]:
    """Import what there is of the wanted ones of NAMES and use it a little; the names that were found."""
    for name in ("traceback", "linecache", "random", "json", "math", "fractions", "decimal", "itertools", "collections",
                 "datetime", "statistics", "re", "string", "functools", "heapq", "cmath", "tempfile", "threading"):  # fmt: skip
        __import__(name)
    done = []
    for name, exercise in (("numpy", _numpy), ("sympy", _sympy), ("scipy", _scipy), ("pandas", _pandas)):
        if name not in wanted:
            continue
        try:
            exercise()
        except ImportError:
            continue
        done.append(name)
    return done


def _numpy() -> None:
    import numpy

    values = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)
    repr(numpy.linalg.solve(values, values[0])), repr(numpy.linalg.eigvals(values)), numpy.random.seed(0)
    values.mean(), values.std(), values @ values, numpy.sort(values, axis=None), str(values.astype(int))


def _sympy() -> None:
    import sympy
    from sympy import Eq, Matrix, Rational, cos, diff, exp, factor, integrate, latex, limit, log, pi, sin, solve, sqrt

    x, y = sympy.symbols("x y")
    n = sympy.Symbol("n", positive=True, integer=True)
    solve(x**2 - 3 * x + 2, x), solve(Eq(2 * x + 1, 6), x), solve([x + y - 3, x - y - 1], [x, y]), solve(x**3 - x, x)
    sympy.simplify(sin(x) ** 2 + cos(x) ** 2), factor(x**3 - 1), sympy.expand((x + y) ** 3), sympy.nsimplify(0.25)
    integrate(x * exp(x), (x, 0, 1)), diff(x**3 * log(x), x), limit(sin(x) / x, x, 0), sympy.summation(n, (n, 1, 10))
    Matrix([[1, 2], [3, 4]]).inv(), sympy.nsolve(x**2 - 2, x, 1), sympy.factorint(360), sympy.binomial(10, 3)
    sympy.N(sqrt(2) + pi, 20), sympy.Poly(x**2 - 1, x).all_roots(), sympy.gcd(12, 18), sympy.solveset(x**2 - 4, x)
    (
        sympy.parse_expr("2*x + 1"),
        sympy.sympify("x/2"),
        sympy.lambdify(x, x**2)(2),
        sympy.Rational("1/3") + Rational(1, 2),
    )
    latex(x**2 / y), str(sqrt(x) + x / 3), repr(solve(x**2 - x - 1, x)), sympy.pretty(x / y), float(sqrt(2))


def _scipy() -> None:
    import scipy.integrate
    import scipy.linalg
    import scipy.optimize
    import scipy.special
    import scipy.stats

    scipy.optimize.brentq(lambda x: x * x - 2, 0, 2), scipy.optimize.fsolve(lambda x: x * x - 2, 1.0)
    (
        scipy.integrate.quad(lambda x: x, 0, 1),
        scipy.stats.norm.cdf(0.0),
        scipy.special.comb(5, 2),
        scipy.linalg.det([[2.0]]),
    )


def _pandas() -> None:
    import pandas

    frame = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    repr(frame), repr(frame.groupby("b")["a"].sum()), frame.describe()


def settle(proc: int) -> int:
    """Make forks cheap: no garbage to find again in each, and huge pages, whose tables are quickly copied, where Linux can.

    `proc`: a descriptor of /proc. The bytes of address space that each fork begins with.
    """
    _forget_fork_hooks()
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None)
    spans = _spans(proc)
    for first, end, is_heap in spans:
        first, end = -(-first // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if end > first and is_heap:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), COLLAPSE)
    return sum(end - first for first, end, _ in spans)


def _forget_fork_hooks() -> None:
    """What modules want to be called for around a fork serves threads that hold locks, of which there are none, and `random`,
    which is seeded for each session; it would cost a tenth of a session. The interpreter keeps it in lists that only gc finds.
    """
    marks = [lambda: None, lambda: None, lambda: None]
    os.register_at_fork(before=marks[0], after_in_parent=marks[1], after_in_child=marks[2])
    for mark in marks:
        for hooks in gc.get_referrers(mark):
            if isinstance(hooks, list) and hooks is not marks:
                hooks.clear()


def _spans(proc: int) -> list[tuple[int, int, bool]]:
    """The memory of this process: first byte, end, and whether it is written to and no file's."""
    with open(os.open("self/maps", os.O_RDONLY, dir_fd=proc)) as file:
        lines = [line.split() for line in file]
    spans = []
    for fields in lines:
        first, end = (int(edge, 16) for edge in fields[0].split("-"))
        spans.append((first, end, fields[1].startswith("rw") and fields[4] == "0"))
    return spans
