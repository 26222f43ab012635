"""The section `storage`: where a run is kept."""

from urllib.parse import urlsplit

from pydantic import field_validator

from raysrec.config.data import AnyPlace
from raysrec.schema import Section


class StorageConfig(Section):
    """Where a run is kept."""

    root: AnyPlace = "runs"
    """Folder of all runs, here or in a store."""
    name: str = ""
    """Folder of this run under `root`; empty for `<data.name>-<model.name>`."""
    mlflow: str = ""
    """An MLflow tracking server that is told of the run, too, such as `http://localhost:5000`; empty for none. Needs
    `pip install 'raysrec[mlflow]'`; credentials come from MLflow's environment variables."""

    @field_validator("mlflow")
    @classmethod
    def _no_credentials(cls, uri: str) -> str:
        if uri and not urlsplit(uri).scheme:
            raise ValueError(
                f"storage.mlflow={uri!r}: expected the address of a tracking server such as http://localhost:5000, "
                "or another URI that MLflow knows, such as sqlite:///mlflow.db"
            )
        if "@" in urlsplit(uri).netloc:
            raise ValueError(
                "storage.mlflow: the URI holds credentials, and it would be saved with every run; take them out, and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri
