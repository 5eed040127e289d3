"""The figures as one page of Markdown."""

from collections.abc import Iterable, Iterator, Mapping

from tests.benchmarks.gpu.ceilings import Figures


def markdown(figures: Figures) -> str:
    """All tables that there are figures for."""
    parts = [f"# {figures['machine']['device']}", ""]
    parts += [f"{name}: {value}  " for name, value in figures["machine"].items()]
    sections = {
        "checks": _checks,
        "ceilings": _ceilings,
        "kernels": _kernels,
        "precisions": _precisions,
        "rates": _rates,
        "ways": _ways,
        "profile": _profile,
        "together": _ways,
    }
    for name, table in sections.items():
        if figures.get(name):
            parts += ["", f"## {name}", "", *table(figures[name])]
    parts += ["", *(f"**{step} failed**: {why}" for step, why in figures["failed"].items())]
    return "\n".join(parts) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(value: object) -> str:
    if value is None:
        return "does not fit"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _checks(checks: Iterable[tuple[str, bool, str]]) -> Iterator[str]:
    return _table(
        ["check", "", "figure"], ((name, "held" if held else "**FAILED**", text) for name, held, text in checks)
    )


def _ceilings(found: Figures) -> Iterator[str]:
    return _table(found, [found.values()])


def _kernels(found: Mapping[str, Figures]) -> Iterator[str]:
    return _table(
        ["what", "milliseconds (and GB/s)"],
        ((name, ", ".join(f"{way} {_cell(value)}" for way, value in ways.items())) for name, ways in found.items()),
    )


def _precisions(found: Mapping[str, Figures]) -> Iterator[str]:
    rows = (
        (name, row["precision"], row["agreement"], row["overflowed"], row["images_s"], figures["auto"])
        for name, figures in found.items()
        for row in figures["trials"]
    )
    return _table(["model", "precision", "agreement", "images out of range", "images/s", "auto takes"], rows)


def _rates(found: Mapping[str, Figures]) -> Iterator[str]:
    rows = (
        (
            name,
            precision,
            ", ".join(f"{_cell(rate)} ({size})" for size, rate in row["images_s"].items()),
            row["tflop_s"],
            row["of_matrix_product"],
        )
        for name, figures in found.items()
        for precision, row in figures["precisions"].items()
    )
    return _table(["model", "precision", "images/s (batch)", "TFLOP/s", "of the matrix product's rate"], rows)


def _ways(found: Figures) -> Iterator[str]:
    return _table(["way", "images/s"], found.items())


def _profile(rows: Iterable[Figures]) -> Iterator[str]:
    return _table(["kernel", "share", "calls"], ((row["kernel"], row["share"], row["calls"]) for row in rows))
