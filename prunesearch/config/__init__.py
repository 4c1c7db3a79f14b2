"""What identifies a result (`recipe.Recipe`, in sections), and how it is run
(`run_options.RunOptions`).
"""
