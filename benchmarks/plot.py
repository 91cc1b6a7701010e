"""The picture of a soak: what is recorded of it, over the jobs that had been done by then."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Run

#: Panels from top to bottom: what it shows, and whose figures, by the name for people.
PANELS = (
    ("MiB on disk", {"file": "file", "WAL": "wal"}),
    ("MiB of memory", {"two consumers and their workers": "consumers", "producer": "producer"}),
    ("open descriptors", {"all processes": "descriptors"}),
    ("jobs a second", {"through the queue": "rate"}),
)
COLOURS = ("#2a6f97", "#c8553d")


def draw(run: Run, file: Path) -> None:
    """Write a picture as SVG.

    Args:
        run: of the scenario ``soak``.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "liteq", "svg.fonttype": "none", "font.size": 9})
    figures = run.by_name
    jobs = [value / 1e6 for value in figures["jobs"].values]
    picture = Figure(figsize=(7.5, 8.0), layout="constrained")
    axes = picture.subplots(len(PANELS), 1, sharex=True)
    for axis, (title, lines) in zip(axes, PANELS, strict=True):
        for colour, (label, name) in zip(COLOURS, lines.items(), strict=False):
            values = figures[name].values
            axis.plot(jobs[len(jobs) - len(values) :], values, color=colour, label=label, linewidth=1.2)
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        if len(lines) > 1:
            axis.legend(frameon=False, loc="center right")
    axes[-1].set_xlabel("million jobs done")
    picture.savefig(file, format="svg", metadata={"Date": None})
