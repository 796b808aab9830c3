"""A Space as the Hub runs it: its repository alone, on the packages that its requirements.txt names."""

import base64
import io
import shutil
from pathlib import Path

from app_server import free_port
from clean_room import Running, bare_environment
from gradio_client import Client
from huggingface_hub import snapshot_download
from PIL import Image


class StartedSpace(Running):
    """The repository of a Space, fetched into an empty folder and started as the Hub starts it."""

    def __init__(self, repo, python: Path, folder: Path):
        snapshot_download(repo.id, repo_type="space", local_dir=folder)
        shutil.rmtree(folder / ".cache")
        self.port = free_port()
        home = folder.with_name(f"{folder.name}-home")
        home.mkdir()
        secrets = {name: entry["value"] for name, entry in repo.secrets.items()}
        environment = bare_environment(
            home, SPACE_ID=repo.id, GRADIO_SERVER_PORT=str(self.port), **variables_of(repo), **secrets
        )
        super().__init__([python, "app.py"], folder, environment)
        try:
            self.wait_for("open http")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def variables_of(repo) -> dict[str, str]:
    """The variables of a Space of the Hub double."""
    return {name: entry["value"] for name, entry in repo.variables.items()}


def generated(url: str, **settings) -> list[Image.Image]:
    """What ``/generate`` answers."""
    client = Client(url, verbose=False)
    answer = client.predict(api_name="/generate", **settings)
    client.close()
    return [Image.open(io.BytesIO(base64.b64decode(image["png"]))) for image in answer["images"]]
