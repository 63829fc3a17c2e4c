"""What several chapters share; each file does one job."""
