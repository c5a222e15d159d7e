from benchmarks.quality import curves


def test_runs_follow_one_another_and_repeated_steps_count_once() -> None:
    first = [{"step": 50, "epoch": 0.5}, {"step": 100, "epoch": 1.0, "x": 1}, {"step": 100, "epoch": 1.0, "x": 2}]
    lines = curves.runs([first, [{"step": 50, "epoch": 0.25}]])
    assert [(line["run"], line["total_epoch"]) for line in lines] == [(1, 0.5), (1, 1.0), (2, 1.25)]
    assert lines[1]["x"] == 2
