"""What identifies a result (`recipe.Recipe`), and how it is run (`recipe.RunOptions`)."""
