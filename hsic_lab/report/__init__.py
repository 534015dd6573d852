"""HTML report about embeddings or a run."""

from hsic_lab.report._embeddings import Embeddings, read_embeddings
from hsic_lab.report._page import write_atlas, write_report

__all__ = ["Embeddings", "read_embeddings", "write_atlas", "write_report"]
