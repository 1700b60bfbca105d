"""The index on disk and exact search in it, without Beam: `LocalIndex.open(index_dir).search(codes, k=10)`."""

from pipelines.search.local_index import LocalIndex, SearchResult

__all__ = ['LocalIndex', 'SearchResult']
