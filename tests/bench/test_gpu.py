"""What can be tested of ``benchmarks.gpu`` without a GPU."""

import pytest
import torch

from benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu", "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        gpu.main()
    assert not (tmp_path / "out").exists()


def test_failed_contestants_and_those_left_out_for_time_are_recorded(tmp_path):
    results = gpu.Results(tmp_path / "results.json", deadline=float("inf"))
    results.add("core", {"contestant": "a"}, lambda: {"both_ms": 1.0})
    results.add("core", {"contestant": "b"}, lambda: 1 / 0)
    results.deadline = 0.0
    results.add("core", {"contestant": "c"}, lambda: pytest.fail("measured"))
    assert results.content["entries"][0] == {"phase": "core", "contestant": "a", "both_ms": 1.0}
    assert "ZeroDivisionError" in results.content["entries"][1]["error"]
    assert results.content["left_out"] == ["core contestant=c"] and results.path.is_file()
