"""Short formats of numbers for people: 61.2M steps, 4.1e-4, 2:14:07."""

import math
from collections.abc import Mapping


def format_count(number: float) -> str:
    """Format a number of steps or a rate with up to three digits: `812`, `4.1k`, `61.2M`, `160M`, `0.4`."""
    if 0 < abs(number) < 10 and number != int(number):
        return f"{number:.1f}"
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M"), (math.inf, "G")):
        if abs(number) < 0.9995 * limit:  # 999,900 is 1.0M rather than 1000k
            scaled = number * 1e3 / limit if limit < math.inf else number / 1e9
            return f"{scaled:.0f}{unit}" if not unit or abs(scaled) >= 99.95 else f"{scaled:.1f}{unit}"
    return str(number)


def format_value(number: object) -> str:
    """Format a hyperparameter: `4.1e-4`, `0.9971`, `20`; other values than numbers are unchanged.

    Numbers close to 1, as discounts are, keep two digits of their distance from it: `0.999958`.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return str(number)
    if isinstance(number, int):
        return str(number) if abs(number) < 100_000 else format_count(number)
    if number == 0 or 0.01 <= abs(number) < 100_000:
        digits = 1 - math.floor(math.log10(1 - abs(number))) if 0.9 < abs(number) < 1 else 4
        return f"{number:.{max(4, digits)}g}"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def format_changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Format the hyperparameters whose text changed: `learning_rate 4.1e-4 -> 5.0e-4`."""
    texts = [(name, format_value(before[name]), format_value(new)) for name, new in after.items() if name in before]
    return [f"{name} {old} -> {new}" for name, old, new in texts if old != new]


def format_fitness(fitness: float | None) -> str:
    """Format a fitness with at least three digits: `0.912`, `-20.3`, `-1523`; `-` if it is absent."""
    if fitness is None:
        return "-"
    if fitness and not 0.01 <= abs(fitness) < 10_000_000:
        return format_value(float(fitness))
    places = next((n for n, limit in ((3, 1), (2, 10), (1, 1000)) if abs(fitness) < limit), 0)
    return f"{fitness:.{places}f}"


def format_rank_fitness(fitness: float | None, *, before_copy: bool) -> str:
    """Format a fitness; one from before a copy is in parentheses."""
    return f"({format_fitness(fitness)})" if before_copy else format_fitness(fitness)


def format_evaluation(member: str, under: str) -> str:
    """Format an evaluation of one member under the hyperparameters of another: `evaluates m04 under m00`."""
    return f"evaluates {member} under {under}"


def format_share(steps: int, budget: int) -> str:
    """Format the steps of a run as a share of its budget: `46 %`. Some searches exceed the one that was planned."""
    return f"{100 * steps / max(1, budget):.0f} %" if steps <= budget else "beyond the plan"


def format_mixture(counts: Mapping[str, int]) -> str:
    """Format the number of members per agent: `3 impala, 2 a3c, 3 vmpo`."""
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def format_duration(seconds: float) -> str:
    """Format a duration in seconds as `h:mm:ss`."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def format_commit(commit: str, digits: int) -> str:
    """Format a commit with the first digits, and the mark of changed files: `0954e9e`, `0954e9e-dirty`."""
    name, mark, _ = commit.partition("-")
    return f"{name[:digits]}{mark and '-dirty'}"


def format_bytes(number: float) -> str:
    """Format a number of bytes: `812 B`, `4.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
