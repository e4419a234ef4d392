"""Pins the images of an overlay: asks their registries for the digests, and writes them into `k8s/components/digests`.

    python scripts/pin_images.py                                        # asks by skopeo
    python scripts/pin_images.py --ask "crane digest IMAGE"             # or by whatever prints a digest

Tags stay where they are written; a digest is of what the tag names today, in whatever architecture a node has. Nothing
is written unless every image has a digest.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parent.parent / "k8s"
ASK = "skopeo inspect --format {{.Digest}} docker://IMAGE"
HEADER = "# Written by `make digests`, which asks each image's registry: the images of production, by tag and digest.\n"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def images(rendered: str) -> list[str]:
    """Return every image of the manifests, by its name and tag, without a digest."""
    found = {image for document in yaml.load_all(rendered, yaml.CSafeLoader) for image in _images(document)}
    return sorted(image.partition("@")[0] for image in found)


def _images(part: Any) -> Iterator[str]:
    for name, below in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if name == "image" and isinstance(below, str):
            yield below
        else:
            yield from _images(below)


def component(digests: dict[str, str]) -> str:
    """Return the text of the component, for images by name and tag with their digests."""
    pinned: list[dict[str, str]] = []
    patches: list[dict[str, Any]] = []
    for image, digest in digests.items():
        name, _, tag = image.rpartition(":")
        pinned.append({"name": name, "newTag": tag, "digest": digest})
        if name.endswith("/fdb-kubernetes-monitor"):  # the operator puts the name of its pods' image together
            config = {"version": tag, "baseImage": name, "tag": f"{tag}@{digest}"}
            add = {"op": "add", "path": "/spec/mainContainer", "value": {"imageConfigs": [config]}}
            patches.append({"target": {"kind": "FoundationDB.*"}, "patch": yaml.safe_dump([add], sort_keys=False)})
    kind = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    made = {**kind, "configurations": ["images.yaml"], "images": pinned, "patches": patches}
    return HEADER + yaml.safe_dump(made, sort_keys=False)


def ask(command: str, image: str) -> str:
    """Return the digest that a command prints for an image."""
    words = [word.replace("IMAGE", image) for word in shlex.split(command)]
    if shutil.which(words[0]) is None:
        raise SystemExit(f"{words[0]} is not here: install it, or name another program: --ask 'crane digest IMAGE'")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not DIGEST.fullmatch(done.stdout.strip()):
        raise SystemExit(f"No digest of {image}, so nothing is written: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def main(words: list[str]) -> None:
    """Render, ask and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", default=ASK, help="a command that prints the digest of IMAGE")
    parser.add_argument("--manifests", type=Path, default=K8S, help="the folder of the manifests")
    options = parser.parse_args(words)
    render = ["kubectl", "kustomize", str(options.manifests / "overlays" / "production")]
    rendered = subprocess.run(render, capture_output=True, text=True, check=True).stdout
    text = component({image: ask(options.ask, image) for image in images(rendered)})
    (options.manifests / "components" / "digests" / "kustomization.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
