"""Moves a service: lanes, heartbeats, verification, stages and the journal behind them."""
