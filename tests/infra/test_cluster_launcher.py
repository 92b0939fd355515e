from __future__ import annotations

import copy
from pathlib import Path

import jsonschema
import pytest
from manifests import LAUNCHERS, ROOT, Document, launcher

CLOUDS = {path.stem: path for path in LAUNCHERS}


def prepared(config: Document) -> Document:
    """Validate and complete a config as `ray up` does before it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    completed = prepare_config(copy.deepcopy(config))
    validate_config(completed)
    return completed


@pytest.fixture(params=LAUNCHERS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Document:
    return launcher(request.param)


def test_ray_up_accepts_the_config_and_adds_no_commands(config: Document) -> None:
    completed = prepared(config)
    assert {name: completed[name] for name in completed if name.endswith("commands")} == {
        name: config[name] for name in config if name.endswith("commands")
    }


def test_ray_up_refuses_a_misspelt_field(config: Document) -> None:
    config["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        prepared(config)


def test_the_head_runs_no_workers_and_workers_are_on_spot(config: Document) -> None:
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    worker = types["gpu"]
    assert worker["min_workers"] == 0 < worker["max_workers"] == config["max_workers"]
    spot = {"aws": ("InstanceMarketOptions", "MarketType", "spot"), "gcp": ("scheduling", "provisioningModel", "SPOT")}
    section, field, value = spot[config["provider"]["type"]]
    assert worker["node_config"][section][field] == value
    assert section not in types["head"]["node_config"]


def test_token_authentication_uses_the_file_of_the_user(config: Document) -> None:
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_the_folders_that_containers_share_with_the_machine_belong_to_their_user(config: Document) -> None:
    """Docker would create a missing folder for root. Prometheus on the head reads /tmp/ray."""
    volumes = [each.partition("=")[2].split(":") for each in config["docker"]["run_options"] if "--volume=" in each]
    assert [inside for _, inside in volumes] == ["/tmp/ray", "/cache"]
    assert volumes[0] == ["/tmp/ray", "/tmp/ray"]
    create = "sudo install --directory --owner=1000 --group=1000 " + " ".join(outside for outside, _ in volumes)
    for node_type in config["available_node_types"].values():
        assert node_type.get("initialization_commands", config["initialization_commands"])[0] == create


def test_machines_on_aws_get_a_current_image_and_not_that_of_ray() -> None:
    types = launcher(CLOUDS["aws"])["available_node_types"]
    (image,) = {node_type["node_config"]["ImageId"] for node_type in types.values()}
    assert image.startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/")
    assert image.removeprefix("resolve:ssm:") in (ROOT / "docs" / "cluster.md").read_text()


def test_clouds_differ_only_in_machines() -> None:
    aws, gcp = (launcher(CLOUDS[name]) for name in ("aws", "gcp"))
    for config in (aws, gcp):  # the folder of the weights
        config["docker"]["run_options"].pop()
    clouds = {"provider", "available_node_types", "initialization_commands"}
    assert {name for name in aws.keys() | gcp.keys() if aws.get(name) != gcp.get(name)} == clouds
    assert Path(aws["file_mounts"]["/home/ray/.ray/auth_token"]).name == "auth_token"
