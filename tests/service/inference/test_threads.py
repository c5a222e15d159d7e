"""The numbers of threads and cores."""

import os

import pytest

from service.inference.threads import available_cores, image_process_count


@pytest.fixture
def bound_to_eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_the_containers_quota_limits_the_cores(bound_to_eight, tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_a_quota_of_cgroup_v1_is_read(bound_to_eight, tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == expected


def test_without_a_quota_the_process_has_the_cores_it_is_bound_to(bound_to_eight, tmp_path):
    assert available_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("nonsense")
    assert available_cores(tmp_path) == 8


def test_image_processes_are_a_quarter_of_the_cores_or_with_a_gpu_all_but_one():
    assert [image_process_count(count, "cpu") for count in (1, 2, 8, 16, 64)] == [2, 2, 2, 4, 16]
    assert [image_process_count(count, "cuda:0") for count in (1, 2, 8, 16)] == [2, 2, 7, 15]
