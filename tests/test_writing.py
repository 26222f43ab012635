import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.config import DataConfig
from raysrec.data.preparing.in_memory import make_histories
from raysrec.data.preparing.writing import write_histories
from raysrec.data.sources.read import read
from raysrec.data.splits import SplitRule
from raysrec.place import Place
from raysrec.prepare import prepare


def test_small_data_still_has_row_groups_to_deal_out(tmp_path):
    config = DataConfig(prepared=str(tmp_path))
    groups = prepare(config).row_groups()
    assert 50 <= len(groups) <= 64
    assert max(group.interactions for group in groups) < 2 * min(group.interactions for group in groups[:-1])


def test_many_row_groups_are_spread_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr("raysrec.data.preparing.writing.ROW_GROUPS", 8)
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 1)
    monkeypatch.setattr("raysrec.data.preparing.writing.LARGEST_ROW_GROUP", 300)
    config = DataConfig.model_validate({"synthetic": {"num_users": 150}})
    histories, _, _ = make_histories(read(config), config)
    (tmp_path / "new").mkdir()
    shards = write_histories(histories, SplitRule(), Place.of(tmp_path / "new"))
    assert [shard.file for shard in shards] == [f"histories/part-{number:05d}.parquet" for number in range(len(shards))]
    assert len(shards) > 2
    assert all(len(shard.row_groups) == 8 for shard in shards[:-1])
    written = pa.concat_tables([pq.read_table(tmp_path / "new" / shard.file) for shard in shards])
    assert pa.concat_arrays(written.column("items").chunks).flatten().to_numpy().tolist() == histories.items.tolist()
