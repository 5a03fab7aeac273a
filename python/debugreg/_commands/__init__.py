"""The commands, one module for each family; `debugreg._cli` has the table."""
