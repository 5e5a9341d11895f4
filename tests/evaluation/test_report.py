import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation.report import format_report, write_evaluation


def test_report_puts_real_data_and_ratio_in_one_row():
    results = {"distance": 3.0, "distance_real": 1.5, "distance_ratio": 2.0, "bits_per_dim": 2.94999, "solver": "ddim"}
    header, *rows = format_report(results).splitlines()
    assert [row.split() for row in rows] == [
        ["distance", "3", "1.5", "2"],
        ["bits_per_dim", "2.95"],
        ["solver", "ddim"],
    ]
    assert header.split() == ["samples", "real", "data", "ratio"]
    ends = header.index("samples") + len("samples"), header.index("real data") + len("real data")
    assert rows[0][: ends[0]].endswith(" 3") and rows[0][: ends[1]].endswith(" 1.5")


def test_report_keeps_a_real_figure_that_has_no_partner():
    assert "accuracy_real" in format_report({"accuracy_real": 0.5})


def test_evaluation_is_plain_json_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "run" / "evaluation.json"
    write_evaluation(path, {"old": 1})
    write_evaluation(
        path, {"fid": np.float32(1.5), "n": jnp.int32(7), "name": "ncsn", "bad": float("nan"), "t": (1, 2)}
    )
    assert json.loads(path.read_text()) == {"fid": 1.5, "n": 7, "name": "ncsn", "bad": None, "t": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    write_evaluation(path, {"old": 1})
    with pytest.raises(TypeError):
        write_evaluation(path, {"new": object()})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_evaluation(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
