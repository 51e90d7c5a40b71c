"""Nothing is unpickled and no code in a data set is run, whatever a file asks for."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from strangers import Payload

from pipeline.data.config import HuggingFaceSource, NumpySource, ParquetSource, WebDatasetSource
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.data.sources.numpy_arrays import open_numpy
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.webdataset_tars import open_webdataset
from pipeline.errors import UserError
from pipeline.evaluate.inception import check_weights
from pipeline.train import checkpoints
from vae_core.config import DataSpec, MLPConfig, VAEConfig
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, describe, load_model


@pytest.fixture
def made(home: Path) -> Path:
    """What the payload makes where it is unpickled, as it is here once to prove that it would."""
    made = home / "made"
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()
    made.unlink()
    return made


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


def test_arrays_of_objects_are_refused(home: Path, made: Path) -> None:
    objects = np.array([Payload(made)] * 4, dtype=object)
    np.save("a.npy", objects, allow_pickle=True)
    np.savez("a.npz", images=objects)
    for kind in ("npy", "npz"):
        with pytest.raises(UserError, match="holds Python objects, which are never loaded"):
            open_numpy(NumpySource(kind=kind, path=f"a.{kind}"), None, home / "cache")
    assert not made.exists()


def test_a_type_of_arrow_that_holds_a_pickle_makes_no_object(home: Path, made: Path) -> None:
    """CVE-2023-47248: pyarrow before 14.0.1 unpickled it as soon as the schema was read."""
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type",
             b"ARROW:extension:metadata": pickle.dumps(Payload(made))}  # fmt: skip
    schema = pa.schema([pa.field("image", pa.binary(), metadata=marks)])
    table = pa.Table.from_arrays([pa.array([png()] * 4, pa.binary())], schema=schema)
    pq.write_table(table, "a.parquet")
    assert open_parquet(ParquetSource(kind="parquet", path="a.parquet"), None).rows == 4
    (home / "saved").mkdir()
    with pa.OSFile("saved/data.arrow", "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_table(table)
    (home / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert open_huggingface(HuggingFaceSource(kind="huggingface", path="saved"), None).rows == 4
    assert not made.exists()


def test_scripts_and_pickles_beside_the_data_are_left_alone(home: Path, made: Path) -> None:
    (home / "saved").mkdir()
    table = pa.table({"image": pa.array([png()] * 4)})
    with pa.OSFile("saved/data.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (home / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (home / "saved/saved.py").write_text(f"from pathlib import Path\nPath({str(made)!r}).touch()\n")
    (home / "saved/dataset_infos.pkl").write_bytes(pickle.dumps(Payload(made)))
    (home / "saved/dataset_info.json").write_text(json.dumps({"builder_name": "saved", "features": {"image": {
        "_type": "Image", "decode": True}, "x": {"_type": "os.system"}}}))  # fmt: skip
    assert open_huggingface(HuggingFaceSource(kind="huggingface", path="saved"), None).rows == 4
    assert not made.exists()


@pytest.mark.parametrize("name", ["../data.arrow", "/etc/passwd", "a/../../secret", "..", "a\nb"])
def test_a_saved_data_set_cannot_name_files_outside(home: Path, name: str) -> None:
    (home / "saved").mkdir()
    (home / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match=r"state\.json: expected the names of data files"):
        open_huggingface(HuggingFaceSource(kind="huggingface", path="saved"), None)


def test_members_that_webdataset_would_unpickle_are_bytes(home: Path, made: Path) -> None:
    with tarfile.open("a.tar", "w") as tar:
        for key in range(4):
            payload = pickle.dumps(Payload(made))
            for name, content in {"png": png(), "pyd": payload, "pickle": payload, "pth": payload}.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = open_webdataset(WebDatasetSource(kind="webdataset", path="a.tar", label="pyd"), ("a", "b"), 10**6)
    assert sum(batch.num_rows for part in source.partitions for batch in part.batches()) == 4
    assert not made.exists()


def test_weights_are_tensors_or_refused(home: Path, made: Path) -> None:
    for content in ({"weight": Payload(made)}, Payload(made)):
        torch.save(content, "weights.pth")
        with pytest.raises(UserError, match="holds more than tensors, or is damaged"):
            check_weights(Path("weights.pth"), sha256="")
    torch.save({"weight": torch.zeros(2)}, "weights.pth")
    check_weights(Path("weights.pth"), sha256="")
    assert not made.exists()


def test_a_pickle_in_the_place_of_a_model_or_checkpoint_is_none(home: Path, made: Path) -> None:
    config = VAEConfig(kind="vae", latent_dim=2, network=MLPConfig(kind="mlp", hidden=(4,)))
    data = DataSpec(channels=1, height=4, width=4)
    torch.save({"weight": Payload(made)}, WEIGHTS)
    Path(CONFIG).write_text(json.dumps(describe(config, data)))
    with pytest.raises(ModelFileError, match=WEIGHTS):
        load_model(home)
    (home / "checkpoints").mkdir()
    for content in (Path(WEIGHTS).read_bytes(), pickle.dumps(Payload(made))):
        name = f"step-{7:09d}-{checkpoints._digest(content)}.safetensors"
        (home / "checkpoints" / name).write_bytes(content)
        assert checkpoints.is_whole(name, content)
    assert checkpoints.latest(home / "checkpoints") is None
    assert not made.exists()
