"""The address that a server listens on."""

from __future__ import annotations

import ipaddress
import socket

from rfdetr.errors import InputError


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, port 0 for any free one; `InputError` where that cannot be."""
    if not 0 <= port < 2**16:  # the system would take the rest of a division
        raise InputError(f"--port {port}: expected 0 to {2**16 - 1}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            return bound
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{host}:{port} cannot be listened on: {reason}; choose another --host or --port"
        ) from error


def address_of(bound: socket.socket) -> str:
    """What a browser opens."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_open_to_others(bound: socket.socket) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
