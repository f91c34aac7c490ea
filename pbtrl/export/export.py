"""Export of a member's policy to a folder: `pbtrl export`.

    bundle   policy.py  weights.safetensors  export.json  config.yaml
    hub      the same with README.md, lineage.png and the run's newest video of the snapshot
    onnx     policy.onnx  export.json  config.yaml

`export.json` says what was exported, and lists the files, which a later export to the same folder may replace.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import pbtrl
from pbtrl.build.policies import LoadedPolicy, load_policy
from pbtrl.config.load import to_yaml
from pbtrl.config.schema import Config
from pbtrl.envs.space_json import space_to_json
from pbtrl.errors import DamagedError, DiskFullError, RunError
from pbtrl.export.bundle import Description
from pbtrl.export.model_card import card_files
from pbtrl.export.self_check import Act, largest_difference
from pbtrl.storage.best_member import stored_evaluation
from pbtrl.storage.json_files import SCHEMA, read_json
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.files import reason, sync_directory, translate_disk_errors, write_durably
from pbtrl.system.strict_json import to_json

FORMATS = ("bundle", "onnx", "hub")
INFO = "export.json"


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        folder: where it is.
        info: content of export.json.
    """

    folder: Path
    info: Mapping[str, Any]


def export(run: RunDirectory, config: Config, member: str, form: str, out: Path | None, *, trusted: bool) -> Export:
    """Export the policy of a member's newest snapshot, after a check against pbtrl's own policy.

    Args:
        run: run directory.
        config: config of the run.
        member: `best`, or an id.
        form: `bundle`, `onnx` or `hub`.
        out: folder; by default `export/MEMBER-FORMAT` in the run directory.
        trusted: as in `load_policy`.

    Raises:
        RunError: the run trains no policies, there is no such member or snapshot, `out` is something else than an
            export, a package is missing, or the exported policy differs from pbtrl's. Nothing was written.
        DiskFullError: no space left; nothing was written.
    """
    if form not in FORMATS:
        raise RunError(f"unknown format {form!r}. Known: {', '.join(FORMATS)}")
    if out is not None:
        _check_replaceable(out)
    try:
        loaded = load_policy(run, config, member, trusted=trusted)
    except RunError as error:
        if config.env is None:
            raise RunError(f"{error}; its weights are {run.members}/ID/snapshots/*/tensors.safetensors") from None
        raise
    folder = out or run.exports / f"{loaded.snapshot.partition('/')[0]}-{form}"
    _check_replaceable(folder)
    info = _origin(run, config, loaded, form)
    files, act = _onnx(loaded, info) if form == "onnx" else _bundle(loaded, info)
    info["largest_difference"] = largest_difference(loaded.policy, act)
    files["config.yaml"] = to_yaml(config).encode()
    if form == "hub":
        files |= card_files(run, config, loaded, info)
    info["files"] = sorted([*files, INFO])
    files[INFO] = to_json(info, indent=2).encode()
    _write(folder, files)
    return Export(folder, info)


def _origin(run: RunDirectory, config: Config, loaded: LoadedPolicy, form: str) -> dict[str, Any]:
    """Describe what is exported, for export.json."""
    assert config.env
    own, policy = config.per_agent_configs[loaded.agent], loaded.policy
    assert own.agent
    return {
        "schema": SCHEMA,
        "pbtrl": pbtrl.__version__,
        "format": form,
        "run": run.path.resolve().name,
        "snapshot": loaded.snapshot,
        "member": loaded.snapshot.partition("/")[0],
        "env": config.env.id,
        "wrappers": [wrapper.model_dump() for wrapper in config.env.wrappers],
        "flatten_observations": config.env.flatten_observations,
        "agent": own.agent.name,
        "env_steps": loaded.report["step"],
        "hyperparameters": dict(loaded.report["hyperparameters"]),
        "score": stored_evaluation(run, loaded.snapshot),
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
    }


def title(info: Mapping[str, Any]) -> str:
    """Describe an export in a line without characters that could end a comment or a string."""
    text = "Policy of {snapshot} of the run {run}: {agent} in {env}, exported by pbtrl {pbtrl}.".format(**info)
    return re.sub(r"[^\w ./:,()-]", "?", text)


def _bundle(loaded: LoadedPolicy, info: dict[str, Any]) -> tuple[dict[str, bytes], Act]:
    described = Description(loaded.policy)
    info["policy"] = described.config
    weights = {name: np.ascontiguousarray(value) for name, value in described.weights.items()}
    files = {
        "weights.safetensors": safetensors.numpy.save(weights),
        "policy.py": described.source(title(info)).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**files, INFO: to_json(info).encode()}.items():
            Path(folder, name).write_bytes(content)
        exported = _imported(Path(folder, "policy.py"))

    def act(x: Any, state: Any, reward: Any) -> Any:
        actions, state = exported.predict(x, state, reward=reward)
        return exported.parameters, actions, state

    return files, act


def _imported(path: Path) -> Any:
    """Make the policy of a policy.py that was just written."""
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Policy()


def _onnx(loaded: LoadedPolicy, info: dict[str, Any]) -> tuple[dict[str, bytes], Act]:
    from pbtrl.export import onnx_graph

    content = onnx_graph.export(loaded.policy, {"pbtrl": to_json(info)}, title(info))
    session = onnx_graph.OnnxPolicy(content)
    info |= {"inputs": session.inputs, "outputs": session.outputs}
    return {"policy.onnx": content}, session.act


def _check_replaceable(folder: Path) -> None:
    """Raise RunError if the folder exists and holds anything else than an export."""
    if not os.path.lexists(folder):
        return
    try:
        names = {path.name for path in folder.iterdir()} - {"__pycache__"}
        if folder.is_symlink():
            raise NotADirectoryError
        own = set(map(str, read_json(folder / INFO)["files"])) if names else set()
    except NotADirectoryError:
        raise RunError(f"{folder} exists and is no folder: choose another with --out") from None
    except (FileNotFoundError, KeyError, TypeError, DamagedError):
        raise RunError(f"{folder} exists and is no export of pbtrl: choose another folder with --out") from None
    except OSError as error:
        raise RunError(f"cannot read {folder}: {reason(error)}") from None
    if foreign := sorted(names - own):
        raise RunError(f"{folder} holds {foreign[0]!r}, which is not of the export: choose another folder with --out")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files to the folder as a whole, in place of an earlier export."""
    staged, gone = (folder.with_name(f".{kind}-{folder.name}-{os.getpid()}") for kind in ("tmp", "gone"))
    made = _missing_parent(folder)
    try:
        with translate_disk_errors(folder, sum(map(len, files.values()))):
            staged.mkdir(parents=True)
            for name, content in files.items():
                write_durably(staged / name, content)
            if folder.exists():
                folder.rename(gone)
            staged.rename(folder)
            sync_directory(folder.parent)
    except OSError as error:
        shutil.rmtree(made or staged, ignore_errors=True)
        if isinstance(error, DiskFullError):
            raise
        raise RunError(f"cannot write {folder}: {reason(error)}") from error
    shutil.rmtree(gone, ignore_errors=True)


def _missing_parent(folder: Path) -> Path | None:
    """Return the topmost parent that does not exist; None if all do."""
    return next((p for p in reversed(folder.absolute().parents) if not p.exists()), None)
