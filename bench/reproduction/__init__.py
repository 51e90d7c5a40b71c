"""Published figures, the protocols behind them, and what training these models here gives."""
