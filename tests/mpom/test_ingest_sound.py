"""Sound data of every layout become the same records."""

import numpy as np
import pytest
from ingested import RunIngest
from rawmpom import SCALE_NM, USABLE, data_set, make_map


@pytest.mark.parametrize("layout", ["flat", "nested", "zip"])
def test_every_layout_gives_the_same_records(tmp_path, run_ingest: RunIngest, layout):
    done = run_ingest(data_set(tmp_path / "raw", 4, layout))
    assert done.report["found"] == 4
    assert done.records["barcode"].to_pylist() == ["L1-000000", "L1-000001", "L2-000002", "L2-000003"]
    maps = np.stack(done.records["map"].to_numpy(zero_copy_only=False)).reshape(4, 2, 64, 64)
    for seed in range(4):
        truth = make_map(2 * seed + 1)
        assert np.abs(maps[seed] - truth)[:, USABLE].max() <= SCALE_NM / 255 + 1e-6
        assert np.isnan(maps[seed][:, ~USABLE]).all()
    assert done.report["capabilities"] == {"nm": True, "supervised": True, "generation": True}
