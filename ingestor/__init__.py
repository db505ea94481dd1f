"""finnhub-ingestor: records a venue's trades, and what it could not record."""

__version__ = "0.1.0"
