"""What every request passes before a route sees it. Plain ASGI, without copies of streams."""
