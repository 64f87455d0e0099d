"""Raw recordings and synthetic rooms to the processed layout that ``ScanNetpp`` reads."""
