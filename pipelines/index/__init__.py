"""The index on disk and exact search in it, without Beam: `LocalIndex.open(index_dir).search(codes, k=10)`."""

from pipelines.index.search import LocalIndex, SearchResult

__all__ = ['LocalIndex', 'SearchResult']
