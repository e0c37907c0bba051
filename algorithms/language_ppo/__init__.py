"""LanguagePPO: see README.md in this folder."""
