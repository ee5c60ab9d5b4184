"""Deployments over REST on a whole mesh: what a user is promised, with real engines of llama.cpp and a program in
vLLM's place."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploying import Deploying, runs
from tests.fake_engine import begun, fake_vllm
from tests.integration.vllm_orchestrator.hub import GATED, hub
from tests.mesh_process import mesh_process

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


@pytest.fixture
def deploying(tmp_path: Path) -> Iterator[Deploying]:
    with deploying_with(tmp_path) as made:
        yield made


@contextmanager
def deploying_with(tmp_path: Path, **more: str) -> Iterator[Deploying]:
    programs = tmp_path / "vllm"
    vllm = fake_vllm(programs)
    models = tmp_path / "models"
    (models / "tiny").mkdir(parents=True)
    (models / "tiny" / "config.json").write_text(json.dumps(TINY))
    with mesh_process(
        tmp_path / "data",
        ENGINE="none",
        ENGINE_PROGRAMS=f"vllm={vllm},llama.cpp",
        VLLM_MODELS_FOLDER=str(models),
        **more,
    ) as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        made = Deploying(mesh, programs)
        with made.client:
            yield made


def test_llama_cpp_is_deployed_serves_takes_work_and_leaves_nothing(deploying: Deploying):
    deploying.deploy(engine="llama.cpp", model_name="tiny-llama", max_model_len=512, concurrency=2)
    ready = deploying.until_ready()
    (part,) = ready["parts"]
    asked = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = deploying.client.post(f"{part['url']}/v1/chat/completions", json=asked)
    assert answer.json()["usage"]["completion_tokens"] == 4
    (held,) = deploying.reservations()
    assert (held["state"], held["pid"], held["ram_mb"]) == ("committed", part["pid"], part["ram_mb"])

    deploying.completed("w-1", "tiny-llama", asked)

    assert deploying.call("DELETE", "/instances/one").status_code == httpx.codes.ACCEPTED
    deploying.until_gone()
    assert not runs(part["pid"])
    assert deploying.claims() == []


def test_a_deployment_survives_what_happens_to_it(deploying: Deploying):
    """One mesh for the whole life of one instance: starting a mesh is what takes time."""
    created = deploying.deploy()["created_at"]
    assert deploying.deploy()["created_at"] == created
    ready = deploying.until_ready()
    assert (ready["generation"], len(begun(deploying.programs))) == (1, 1)
    assert "--max-model-len" in begun(deploying.programs)[0]["arguments"]
    assert "Application startup complete" in deploying.call("GET", "/instances/one/logs").json()["text"]

    os.kill(ready["parts"][0]["pid"], signal.SIGKILL)
    again = deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 2)
    assert any("killed" in event for event in deploying.events())

    deploying.mesh.kill()
    deploying.mesh.start().wait_ready()
    after = deploying.until(lambda told: told["parts"] and told["parts"][0]["pid"] == again["parts"][0]["pid"])
    assert after["generation"] == 2
    assert len(begun(deploying.programs)) == 2

    deploying.deploy(max_model_len=256)
    changed = deploying.until(lambda told: told["generation"] == 3 and len(told["urls"]) == 1 == len(told["replicas"]))
    assert changed["request"]["max_model_len"] == 256
    assert not runs(again["parts"][0]["pid"])
    assert deploying.steps().index((1, "READY")) < deploying.steps().index((0, "STOPPING a new one took its place"))

    deploying.call("POST", "/instances/one/restart")
    deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 4)
    deploying.call("DELETE", "/instances/one")
    deploying.until_gone()
    assert deploying.claims() == []


def test_replicas_serve_side_by_side_and_each_comes_back_alone(deploying: Deploying):
    deploying.deploy(replicas=3)
    ready = deploying.until_ready()
    assert len({*ready["urls"]}) == 3 == len(deploying.claims())
    models = deploying.client.get(f"{deploying.mesh.url('vllm_orchestrator')}/api/v1/models").json()["models"]
    assert [(each["model_name"], each["ready"]) for each in models] == [("tiny", 3)]

    first = ready["parts"][0]
    os.kill(first["pid"], signal.SIGKILL)
    some = deploying.until(lambda told: told["state"] == "DEGRADED")
    assert len(some["urls"]) == 2
    deploying.until_ready()
    assert len(begun(deploying.programs)) == 4

    deploying.deploy(replicas=1)
    fewer = deploying.until(lambda told: len(told["replicas"]) == 1 and told["state"] == "READY")
    assert (len(begun(deploying.programs)), len(fewer["urls"])) == (4, 1)
    assert deploying.call("GET", "/instances/one/logs?replica=2").status_code == httpx.codes.NOT_FOUND

    fake_vllm(deploying.programs, "bad_flag")
    deploying.deploy(max_model_len=256)
    stuck = deploying.until(lambda told: "FAILED" in [each["state"] for each in told["replicas"]])
    assert (stuck["state"], stuck["urls"]) == ("READY", fewer["urls"])
    assert "--no-such-flag" in stuck["problem"]


def test_what_is_deleted_ends_its_requests_first(deploying: Deploying):
    fake_vllm(deploying.programs, "ponder=2", "ponder=60")
    deploying.deploy()
    url = deploying.until_ready()["urls"][0]
    asked = {"model": "tiny", "messages": []}
    with ThreadPoolExecutor() as beside:
        answer = beside.submit(httpx.post, f"{url}/v1/chat/completions", json=asked, timeout=90, trust_env=False)
        until_in_hand(url)
        deploying.call("DELETE", "/instances/one")
        deploying.until(lambda told: told["state"] == "STOPPING" and told["urls"] == [])
        assert answer.result().is_success
        deploying.until_gone()

        deploying.deploy()
        url = deploying.until_ready()["urls"][0]
        answer = beside.submit(httpx.post, f"{url}/v1/chat/completions", json=asked, timeout=90, trust_env=False)
        until_in_hand(url)
        deploying.call("DELETE", "/instances/one?drain_seconds=0.5")
        deploying.until_gone()
        assert isinstance(answer.exception(), httpx.HTTPError)
    assert deploying.claims() == []


def until_in_hand(url: str) -> None:
    until = time.monotonic() + 30
    while " 1.0" not in httpx.get(f"{url}/metrics", trust_env=False).text:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_engine_that_somebody_else_runs_is_registered_watched_and_left_alone(deploying: Deploying):
    deploying.deploy()
    url = deploying.until_ready()["urls"][0]
    deploying.deploy(instance_name="theirs", engine="external", url=f"{url}/v1")
    theirs = deploying.until_ready("theirs")
    assert (theirs["urls"], theirs["parts"]) == ([url], [])
    assert len(deploying.claims()) == 1

    deploying.deploy(instance_name="wrong", engine="external", url=url, model_name="other")
    wrong = deploying.until(lambda told: "it serves tiny, not other" in told["problem"], "wrong")
    assert wrong["urls"] == []

    deploying.call("DELETE", "/instances/theirs")
    deploying.until_gone("theirs")
    assert httpx.get(f"{url}/health", trust_env=False).is_success
    deploying.call("DELETE", "/instances/one")
    deploying.until_gone()


def test_a_failure_decides_what_is_tried_next(deploying: Deploying):
    fake_vllm(deploying.programs, "oom_at_profiling", "crash", "ok", "bad_flag")
    deploying.deploy()
    ready = deploying.until_ready()
    assert ready["generation"] == 3
    assert ready["replicas"][0]["eased"]["max_num_seqs"] is not None
    assert len([event for event in deploying.events() if event.startswith("STOPPING")]) == 2

    metrics = deploying.client.get(f"{deploying.mesh.url('vllm_orchestrator')}/metrics").text
    for line in (
        'mesh_orchestrator_failures_total{kind="oom_at_profiling"} 1.0',
        'mesh_orchestrator_replicas{state="READY"} 1.0',
    ):
        assert line in metrics

    deploying.deploy(instance_name="two")
    failed = deploying.until(lambda told: told["state"] == "FAILED", "two")
    assert "--no-such-flag" in failed["problem"]
    assert (failed["generation"], failed["parts"]) == (1, [])


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    with deploying_with(tmp_path_factory.mktemp("impatient"), VLLM_START_SECONDS="4") as made:
        yield made


@pytest.mark.parametrize("how", ["hang", "wrong_port"])
def test_what_never_serves_is_ended_and_started_again(impatient: Deploying, how: str):
    name = how.replace("_", "-")
    fake_vllm(impatient.programs, how)
    impatient.deploy(instance_name=name)
    ready = impatient.until_ready(name)

    first, *_ = [start for start in begun(impatient.programs) if start["how"] == how]
    assert ready["generation"] > 1
    assert any("it did not serve within 4 s" in event for event in impatient.events(name))
    assert not any(runs(first[process]) for process in ("pid", "core"))
    impatient.call("DELETE", f"/instances/{name}")
    impatient.until_gone(name)
    assert impatient.reservations() == []


def test_what_starts_slowly_is_waited_for(impatient: Deploying):
    fake_vllm(impatient.programs, "slow=1")
    impatient.deploy(instance_name="slow")

    assert impatient.until_ready("slow")["generation"] == 1
    impatient.call("DELETE", "/instances/slow")
    impatient.until_gone("slow")


def test_what_dies_of_a_request_is_started_again_where_it_was(impatient: Deploying):
    fake_vllm(impatient.programs, "dies")
    impatient.deploy(instance_name="dying")
    first = impatient.until_ready("dying")
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{first['urls'][0]}/v1/chat/completions", json={"messages": []}, trust_env=False)
    again = impatient.until(lambda told: told["state"] == "READY" and told["generation"] == 2, "dying")

    assert [part["node_id"] for part in again["parts"]] == [part["node_id"] for part in first["parts"]]
    assert any("illegal memory access" in event for event in impatient.events("dying"))
    impatient.call("DELETE", "/instances/dying")
    impatient.until_gone("dying")


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model_name": "no/such/model"}, 422, "model_name"),
        ({"model_name": "two words"}, 422, "model_name"),
        ({"model_name": None}, 422, "model_name"),
        ({"model_name": "owner/unknown"}, 404, "unknown_model"),
        ({"model_name": GATED}, 403, "gated_model"),
        ({"model_name": "broken"}, 422, "config.json"),
        ({"model_name": "odd"}, 422, "hidden_size"),
        ({"weights_bytes": 1, "parameter_count": 1}, 422, "exclude each other"),
        ({"kv_cache_dtype": "int3"}, 422, "kv_cache_dtype"),
        ({"node_ids": ["nowhere"]}, 409, "no_usable_device"),
        ({"nodes": []}, 422, "nodes"),
        ({"instance_name": "two words"}, 422, "instance_name"),
        ({"instance_name": "a/b"}, 422, "instance_name"),
        ({"replicas": 65}, 422, "replicas"),
        ({"engine": "tensorrt"}, 422, "engine"),
        ({"engine": "external"}, 422, "url"),
        ({"url": "http://192.0.2.1:8000"}, 422, "url"),
        ({"engine": "external", "url": "ftp://somewhere"}, 422, "url"),
        ({"engine": "llama.cpp", "ram_mb": 60_000_000}, 409, "RAM"),
        ({"engine": "llama.cpp", "model_path": "/m.gguf"}, 422, "ram_mb"),
    ],
)
def test_bad_input_reserves_and_starts_nothing(deploying_once: Deploying, fields, status, words):
    asked = {"model_name": "tiny", "instance_name": "one", "device": "cpu"} | fields
    answer = deploying_once.call("POST", "/deploy", json=asked)

    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert deploying_once.call("GET", "/instances").json()["instances"] == []
    assert deploying_once.reservations() == []


@pytest.fixture(scope="module")
def deploying_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    folder = tmp_path_factory.mktemp("bad")
    documents = {"tiny": json.dumps(TINY), "broken": "{", "odd": json.dumps(TINY | {"hidden_size": -1})}
    for name, text in documents.items():
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text(text)
    (folder / "hub" / GATED).mkdir(parents=True)
    settings = {"ENGINE": "none", "VLLM_MODELS_FOLDER": str(folder / "models"), "HF_HUB_CACHE": str(folder / "cache")}
    with hub(folder / "hub") as server, mesh_process(folder / "data", HF_ENDPOINT=server.url, **settings) as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        made = Deploying(mesh, folder)
        with made.client:
            yield made


def test_engines_that_others_reach_want_the_key_of_their_node_and_work_of_the_queue_says_it(tmp_path: Path):
    with deploying_with(tmp_path, ENGINE_HOST="0.0.0.0", ENGINE_ADDRESS="127.0.0.9", ENGINE_API_KEY="s3cret") as made:
        made.deploy(engine="llama.cpp", model_name="tiny-llama", max_model_len=512)
        (url,) = made.until_ready()["urls"]
        asked = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

        assert url.startswith("http://127.0.0.9:")
        refused = made.client.post(f"{url}/v1/chat/completions", json=asked)
        assert refused.status_code == httpx.codes.UNAUTHORIZED
        answered = made.client.post(
            f"{url}/v1/chat/completions", json=asked, headers={"Authorization": "Bearer s3cret"}
        )
        assert answered.json()["usage"]["completion_tokens"] == 4
        made.completed("w-1", "tiny-llama", asked)
        made.call("DELETE", "/instances/one")
        made.until_gone()
        assert "s3cret" not in made.mesh.output
