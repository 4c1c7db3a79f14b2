"""What people look at: progress while a search runs, tables when it is done. No model here."""
