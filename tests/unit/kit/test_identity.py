"""The machine's name: made once, agreed on by all who start together."""

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from libs.common.errors import WrongSetting
from libs.common.kit.identity import data_directory, new_boot_id, node_id
from libs.common.kit.settings import PlatformSettings, load


def settings(directory: Path, **more: str) -> PlatformSettings:
    return load(PlatformSettings, {"MESH_DATA_DIR": str(directory), **more})


def test_a_node_id_that_is_set_wins(tmp_path: Path) -> None:
    assert node_id(settings(tmp_path, NODE_ID="gpu-box")) == "gpu-box"


def test_a_node_id_is_made_once_and_kept(tmp_path: Path) -> None:
    made = node_id(settings(tmp_path / "data"))
    assert re.fullmatch(r"[A-Za-z0-9_-]+-[0-9a-f]{8}", made)
    assert node_id(settings(tmp_path / "data")) == made


def test_all_who_start_together_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: node_id(settings(tmp_path / "data")), range(32)))
    assert len(made) == 1


def test_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    directory = data_directory(settings(tmp_path / "data"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_file_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "node_id").write_text("")
    assert node_id(settings(tmp_path))


def test_a_file_that_holds_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "node_id").write_text("two words")
    with pytest.raises(WrongSetting, match="does not hold a node id; delete it"):
        node_id(settings(tmp_path))


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongSetting, match=r"MESH_DATA_DIR is '.*/file/data', which cannot be written"):
        data_directory(settings(tmp_path / "file" / "data"))


def test_every_start_has_another_boot_id() -> None:
    assert new_boot_id() != new_boot_id()
