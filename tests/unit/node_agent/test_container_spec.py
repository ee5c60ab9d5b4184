"""What a container job may ask for, and what it is told when it may not."""

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from services.node_agent.container_spec import (
    ContainerRules,
    ContainerSpec,
    encoded,
    is_safe_path,
    read_spec,
    refused_by_owner,
)

RULES = ContainerRules(
    images=("busybox:*", "team/*"), cpus=2.0, memory_mb=512, disk_mb=10, gpus=("GPU-1",), network=False
)


def test_everything_but_the_image_may_be_left_out():
    assert read_spec({"image": "busybox:1", "cpus": None}) == ContainerSpec(image="busybox:1")


def test_a_whole_specification_is_read():
    spec = read_spec(
        {
            "image": "busybox:1",
            "command": ["sh", "-c", "true"],
            "environment": {"A": "b"},
            "files": {"a/b": {"text": "ü"}, "c": {"base64": "/w=="}},
            "outputs": ["x", "x", "y/z"],
            "cpus": 1,
            "memory_mb": 64,
            "gpus": 1,
            "network": True,
            "success_exit_codes": [0, 7],
        }
    )

    assert spec.files == {"a/b": "ü".encode(), "c": b"\xff"}
    assert (spec.command, spec.outputs, spec.success_exit_codes) == (("sh", "-c", "true"), ("x", "y/z"), (0, 7))
    assert (spec.cpus, spec.memory_mb, spec.gpus, spec.network) == (1.0, 64, 1, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", None),
        ("image", ""),
        ("image", "two words"),
        ("image", "-v"),
        ("image", "x" * 257),
        ("command", "sh"),
        ("command", []),
        ("command", ["sh", 1]),
        ("command", ["a\0b"]),
        ("command", ["x"] * 257),
        ("command", ["x" * 65537]),
        ("environment", ["A=b"]),
        ("environment", {"not a name": "x"}),
        ("environment", {"": "x"}),
        ("environment.A", {"A": 1}),
        ("environment.A", {"A": "\0"}),
        ("environment.A", {"A": "x" * 32769}),
        ("environment", {f"V{n}": "" for n in range(129)}),
        ("files", ["x"]),
        ("files", {"../x": {"text": ""}}),
        ("files", {"/etc/passwd": {"text": ""}}),
        ("files", {"a": {"text": ""}, "a/b": {"text": ""}}),
        ("files", {f"f{n}": {"text": ""} for n in range(65)}),
        ("files", {"x": {"text": "x" * (512 * 1024 + 1)}}),
        ("files.x", {"x": "text"}),
        ("files.x", {"x": {"text": 1}}),
        ("files.x", {"x": {"base64": "no!"}}),
        ("files.x", {"x": {"text": "", "base64": ""}}),
        ("outputs", "x"),
        ("outputs", ["a/../../x"]),
        ("outputs", [1]),
        ("cpus", 0),
        ("cpus", True),
        ("cpus", "1"),
        ("memory_mb", 5),
        ("memory_mb", 64.5),
        ("gpus", -1),
        ("gpus", 65),
        ("network", 1),
        ("success_exit_codes", []),
        ("success_exit_codes", [256]),
        ("success_exit_codes", 0),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field: str, value: Any):
    name = field.split(".")[0]
    with pytest.raises(Malformed) as refused:
        read_spec({"image": "busybox:1", name: value} if value is not None else {})

    assert refused.value.details == {"field": field}
    assert f"`{field}`" in refused.value.message


def test_a_field_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(Malformed, match=r"`privileged` is no field of a container; the fields are image, command, "):
        read_spec({"image": "busybox:1", "privileged": True})


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "\0", "c"])).map("/".join) | st.text())
def test_a_path_that_is_safe_stays_in_its_folder(path: str):
    if is_safe_path(path):
        place = PurePosixPath("/work") / path
        assert place.is_relative_to("/work")
        assert not set(place.parts) & {"..", "."}
        assert str(place) == f"/work/{path}"
    else:
        assert (
            not path
            or set(path.split("/")) & {"", ".", ".."}
            or "\0" in path
            or len(path) > 256
            or path.count("/") > 15
        )


@given(st.binary())
def test_a_file_comes_back_as_it_was(content: bytes):
    assert read_spec({"image": "x", "files": {"x": encoded(content)}}).files == {"x": content}


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (ContainerSpec(image="busybox:1", cpus=2, memory_mb=512, gpus=1), None),
        (ContainerSpec(image="team/a/b@sha256:1"), None),
        (ContainerSpec(image="busybox"), "image_not_allowed"),
        (ContainerSpec(image="example.com/busybox:1"), "image_not_allowed"),
        (ContainerSpec(image="busybox:1", network=True), "network_not_allowed"),
        (ContainerSpec(image="busybox:1", cpus=2.5), "limit_exceeded"),
        (ContainerSpec(image="busybox:1", memory_mb=513), "limit_exceeded"),
        (ContainerSpec(image="busybox:1", gpus=2), "limit_exceeded"),
    ],
)
def test_what_the_owner_does_not_allow_may_be_tried_elsewhere(spec: ContainerSpec, code: str | None):
    refused = refused_by_owner(spec, RULES)

    assert (refused.code if refused else None) == code
    assert refused is None or refused.retryable
