"""The benchmarks work, and what they record can be read again. How fast anything is, is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import floors, readme, report, results, targets
from benchmarks.harness import Bench, Figure, against_floor, distribution, percentile
from benchmarks.machine import Machine
from benchmarks.results import Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.idle import cpu_time
from benchmarks.scenarios.soak import Look, figures, growth
from benchmarks.tasks import open_queue, payload

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine(2, "a processor", "Linux", "3.11.7", "3.40.1", "0.1.0", "ext4", 250.0, 0.1)


def benchmarks(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m benchmarks`` as a user does."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def run_of(scenario: str, *figures: Figure, date: str = "2025-01-01T00:00:00Z", quick: bool = False) -> Run:
    return Run(scenario, date, 7, quick, MACHINE, figures)


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quick_run_measures_both_contestants_and_writes_lines_that_can_be_read(tmp_path: Path) -> None:
    done = benchmarks("enqueue", "map", "depth", "import", "--quick", "--json", tmp_path / "quick.jsonl")
    assert done.returncode == 0, done.stderr
    runs = [results.parse(line) for line in (tmp_path / "quick.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [run.scenario for run in runs] == ["enqueue", "map", "depth", "import"]
    assert all(value > 0 for run in runs for figure in run.figures for value in figure.values)
    assert {"full/liteq", "full/floor", "full/ratio", "normal/ratio"} <= set(runs[0].by_name)
    assert all(run.quick and run.machine.fsync > 0 for run in runs)


def test_a_quick_run_drains_a_queue_with_real_consumers_of_both_kinds(tmp_path: Path) -> None:
    done = benchmarks("drain", "--quick", "--repeat", 1, "--durability", "normal", "--json", tmp_path / "drain.jsonl")
    assert done.returncode == 0, done.stderr
    run = results.parse((tmp_path / "drain.jsonl").read_text(encoding="utf-8"))
    assert {"normal/thread-2/floor", "normal/thread-2/liteq", "normal/process-2/ratio"} <= set(run.by_name)
    assert not any(name.startswith("full") for name in run.by_name)


@pytest.mark.slow
def test_a_quick_run_measures_a_directory_of_files(tmp_path: Path) -> None:
    done = benchmarks("file", "--quick", "--repeat", 1, "--durability", "normal", "--json", tmp_path / "file.jsonl")
    assert done.returncode == 0, done.stderr
    run = results.parse((tmp_path / "file.jsonl").read_text(encoding="utf-8"))
    assert {"normal/enqueue/liteq", "normal/drain thread-2/liteq", "open/100,000", "claim/ratio"} <= set(run.by_name)


@pytest.mark.slow
def test_a_quick_run_purges_backs_up_and_weighs_what_is_left(tmp_path: Path) -> None:
    done = benchmarks("upkeep", "--quick", "--repeat", 1, "--json", tmp_path / "upkeep.jsonl")
    assert done.returncode == 0, done.stderr
    run = results.parse((tmp_path / "upkeep.jsonl").read_text(encoding="utf-8"))
    wanted = {target.figure for target in targets.TARGETS if target.scenario == "upkeep"}
    assert wanted <= set(run.by_name)


@pytest.mark.slow
def test_a_quick_soak_loses_no_job_and_is_drawn(tmp_path: Path) -> None:
    done = benchmarks("soak", "--quick", "--json", tmp_path / "soak.jsonl")
    assert done.returncode == 0, done.stderr
    run = results.parse((tmp_path / "soak.jsonl").read_text(encoding="utf-8"))
    wanted = {target.figure for target in targets.TARGETS if target.scenario == "soak"}
    assert wanted <= set(run.by_name)
    assert len(run.by_name["file"].values) == len(run.by_name["jobs"].values) == len(run.by_name["rate"].values) + 1


def test_a_soak_only_runs_where_it_is_named() -> None:
    assert [name for name, scenario in SCENARIOS.items() if scenario.on_request] == ["soak"]


def test_growth_is_the_last_quarter_against_the_second() -> None:
    assert growth([5.0, 9.0, 2.0, 2.0, 7.0, 7.0, 3.0, 5.0]) == 2.0
    assert growth([4.0]) == 1.0


def test_a_run_is_not_drawn_where_there_is_none(tmp_path: Path) -> None:
    done = benchmarks("plot", "--results", tmp_path, "--plot", tmp_path / "soak.svg")
    assert (done.returncode, done.stdout) == (0, "no soak is recorded\n")


def test_a_soak_is_drawn_over_the_jobs_done(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    looks = [Look(float(n), 1000 * n, 10 << 20, 1 << 20, 99 << 20, 30 << 20, 50) for n in range(1, 9)]
    results.append(Run("soak", "2025-01-01T00:00:00Z", 1, False, MACHINE, tuple(figures(looks))), tmp_path / "s.jsonl")
    done = benchmarks("plot", "--results", tmp_path, "--plot", tmp_path / "soak.svg")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "soak.svg").read_text(encoding="utf-8")
    for words in ("MiB on disk", "MiB of memory", "open descriptors", "jobs a second", "million jobs done", "WAL"):
        assert words in drawn


def test_a_quick_run_is_not_recorded_unless_somebody_asks(tmp_path: Path) -> None:
    done = benchmarks("import", "--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_recorded_names_no_directory_of_this_machine(tmp_path: Path) -> None:
    done = benchmarks("import", "--quick", "--json", tmp_path / "lines", "--directory", tmp_path)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "lines").read_text(encoding="utf-8")
    assert str(tmp_path) not in written + done.stdout
    assert str(ROOT) not in written + done.stdout


@pytest.mark.parametrize("arguments", [["enqeue"], ["check", "enqueue"], ["--repeat", "0"], ["--durability", "off"]])
def test_a_wrong_command_line_is_refused_before_anything_runs(arguments: list[str]) -> None:
    done = benchmarks(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_help_names_every_scenario() -> None:
    help_text = benchmarks("--help").stdout
    assert [name for name in SCENARIOS if name not in help_text] == []


# ── the record ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_survives_the_way_through_the_record(tmp_path: Path) -> None:
    run = run_of("enqueue", Figure("full/liteq", "jobs/s", (2500.0, 2750.0, 2600.0)))
    results.append(run, tmp_path / "results" / "enqueue.jsonl")
    assert results.latest(tmp_path / "results") == {"enqueue": run}


def test_the_last_run_counts_and_quick_ones_never(tmp_path: Path) -> None:
    first = run_of("map", Figure("full/ratio", "x", (0.5,)), date="2025-01-01T00:00:00Z")
    second = run_of("map", Figure("full/ratio", "x", (0.6,)), date="2025-01-02T00:00:00Z")
    quick = run_of("map", Figure("full/ratio", "x", (9.0,)), date="2025-01-03T00:00:00Z", quick=True)
    for run in (second, first, quick):
        results.append(run, tmp_path / "map.jsonl")
    assert results.latest(tmp_path) == {"map": second}


@pytest.mark.parametrize("line", ["{}", "[]", '{"scenario": "x", "figures": [{}]}', "no JSON"])
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"not a line of results|Expecting value"):
        results.parse(line)


def test_a_line_of_the_record_is_plain_json_with_the_median_for_other_readers() -> None:
    fields = json.loads(run_of("x", Figure("rate", "jobs/s", (3.0, 1.0, 123456.7))).line())
    figure = {"name": "rate", "unit": "jobs/s", "median": 3.0, "min": 1.0, "max": 123460.0}
    assert fields["figures"] == [figure | {"values": [3.0, 1.0, 123460.0]}]
    assert fields["machine"]["cores"] == 2


# ── check and readme ────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_says_pass_miss_or_none_for_each_target_and_never_fails(tmp_path: Path) -> None:
    figures = [Figure("full/ratio", "x", (0.9,)), Figure("normal/ratio", "x", (0.2,))]
    results.append(run_of("enqueue", *figures), tmp_path / "enqueue.jsonl")
    done = benchmarks("check", "--results", tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) == len(targets.TARGETS)
    assert lines[0].startswith("pass  enqueue, full ")
    assert lines[1].startswith("miss  enqueue, normal ")
    assert all(line.startswith("none") for line in lines[2:])


@pytest.mark.parametrize(
    ("sense", "value", "met"),
    [("at least", 2.0, True), ("at least", 1.9, False), ("at most", 2.0, True), ("below", 2.0, False)],
)
def test_a_bound_counts_as_it_is_worded(sense: str, value: float, met: bool) -> None:
    assert targets.Target("", "", "", sense, 2.0).is_met(value) is met  # type: ignore[arg-type]


def test_every_target_and_every_row_of_the_readme_names_a_scenario() -> None:
    named = {target.scenario for target in targets.TARGETS} | {row.scenario for row in readme.ROWS}
    assert named <= set(SCENARIOS)


def test_the_readme_is_the_same_however_often_it_is_made(tmp_path: Path) -> None:
    rate = [Figure(f"{each}/liteq", "jobs/s", (2500.0, 2750.0, 2600.0)) for each in ("full", "normal")]
    ratio = [Figure(f"{each}/ratio", "x", (0.91, 0.9, 0.92)) for each in ("full", "normal")]
    results.append(run_of("enqueue", *rate, *ratio), tmp_path / "enqueue.jsonl")
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    first = benchmarks("readme", "--results", tmp_path, "--readme", file)
    once = file.read_text(encoding="utf-8")
    second = benchmarks("readme", "--results", tmp_path, "--readme", file)
    assert (first.stdout, second.stdout) == ("README.md: written\n", "README.md: nothing new\n")
    assert file.read_text(encoding="utf-8") == once
    assert once.startswith(f"before\n{readme.BEGIN}\n|")
    assert once.endswith(f"\n{readme.END}\nafter\n")
    assert "old" not in once
    assert "2,600/s (2,500 to 2,750), 0.910 of the floor" in once


@pytest.mark.parametrize("text", ["none", readme.BEGIN, f"{readme.END}{readme.BEGIN}", (readme.BEGIN + readme.END) * 2])
def test_a_readme_without_its_marks_is_left_alone_with_a_word(text: str, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(text, encoding="utf-8")
    done = benchmarks("readme", "--results", tmp_path, "--readme", file)
    assert done.returncode == 0
    assert "nothing was changed" in done.stdout
    assert file.read_text(encoding="utf-8") == text


def test_nothing_recorded_leaves_an_empty_place_in_the_readme() -> None:
    assert readme.with_table(f"{readme.BEGIN}old{readme.END}", {}) == f"{readme.BEGIN}\n{readme.END}"


# ── the parts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_floor_writes_the_rows_that_liteq_writes(tmp_path: Path) -> None:
    queue = open_queue(tmp_path / "queue.db", "normal")
    connection = floors.create(tmp_path / "floor.db", "normal")
    queue.add(1, 2)
    floors.insert_each(connection, [payload(queue, 1, 2)])
    with queue.app.run_in_background():
        assert queue.app.result(queue.app.jobs()[0].id).get(timeout=20) == 3
    assert floors.drain(connection) == 1
    connection.close()
    queue.app.close()
    assert rows(tmp_path / "floor.db") == rows(tmp_path / "queue.db")


def rows(path: Path) -> dict[str, list[object]]:
    """What the tables hold that both must have filled alike: not the instants, the owner's number, the random part."""
    connection = floors.connect(path, "normal")
    job = "SELECT id, cid, queue, task, priority, due, expires, options, summary, payload FROM liteq_job"
    done = "SELECT id, state, claim, attempt, base, crashes, result, reason FROM liteq_done"
    running = "SELECT count(*) FROM liteq_running UNION ALL SELECT count(*) FROM liteq_ready"
    found = {question: connection.execute(question).fetchall() for question in (job, done, running)}
    connection.close()
    return found


def test_a_floor_drains_everything_in_order_and_can_leave_some_for_later(tmp_path: Path) -> None:
    connection = floors.create(tmp_path / "floor.db", "normal")
    floors.insert_all(connection, [b"x"] * 250)
    floors.insert_all(connection, [b"later"] * 3, delay=60.0)
    claimed = floors.turn(connection, [], 10)
    assert [job[0] for job in claimed] == list(range(1, 11))
    assert floors.turn(connection, claimed, 0) == []
    assert floors.drain(connection, batch=100) == 240
    connection.close()


def test_contestants_take_turns_each_in_an_empty_directory() -> None:
    order: list[tuple[str, int]] = []

    def contestant(name: str, directory: Path) -> int:
        order.append((name, len(list(directory.iterdir()))))
        (directory / "left behind").touch()
        return len(order)

    turns = {"a": lambda path: contestant("a", path), "b": lambda path: contestant("b", path)}
    answers = Bench(repeat=2).take_turns(turns)
    assert order == [("a", 0), ("b", 0)] * 3
    assert answers == {"a": [3, 5], "b": [4, 6]}  # the first round warms up


def test_a_ratio_is_taken_round_by_round() -> None:
    *_, ratio = against_floor("full", "jobs/s", [10.0, 30.0, 8.0], [20.0, 30.0, 10.0])
    assert (ratio.name, ratio.values, ratio.median) == ("full/ratio", (0.5, 1.0, 0.8), 0.8)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]
    assert distribution("x", [[0.001], [0.003]], {"max": 1.0}) == [Figure("x/max", "ms", (1.0, 3.0))]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (31_415.9, "31,400"),
        (999.6, "1,000"),
        (100.4, "100"),
        (12.345, "12.3"),
        (1.0, "1.00"),
        (0.01214, "0.0121"),
        (0, "0"),
    ],
)
def test_a_number_has_three_digits_that_count(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_cpu_time_of_a_process_counts_its_children() -> None:
    child = "import sys, time; sum(range(2_000_000)); print(time.process_time(), flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        used_by_child = float(process.stdout.readline())
        used_by_both = cpu_time(process.pid)
    assert used_by_both > used_by_child > 0
