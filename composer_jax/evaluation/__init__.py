"""How well what was composed keeps what was asked for."""
