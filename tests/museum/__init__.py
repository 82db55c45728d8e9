"""The bug museum: historic bugs of diffusion code, each a switch that re-makes it in this library.

A test-only package.  An `Exhibit` says what the bug was and where it was seen, holds the switch
that puts it in (by replacing one function everywhere), makes the picture that comes of it, and
names the library's own test that catches it.  ``tests/test_museum.py`` runs that test with the
switch off and on; ``notebooks/13_bug_museum.py`` shows the pictures side by side.

    from museum import EXHIBITS
    exhibit = EXHIBITS["flipped_sign"]
    right, error = exhibit.make()
    with exhibit.switch():
        wrong, error = exhibit.make()
"""
from museum import grids, guided, networks, samplers
from museum.frame import Curve, Exhibit, Pictures, Points, placard, replaced

ROOMS = {"Samplers": samplers.ROOM, "Grids and schedules": grids.ROOM,
         "Targets, guidance, editing": guided.ROOM, "Networks": networks.ROOM}
EXHIBITS = {exhibit.name: exhibit for room in ROOMS.values() for exhibit in room}

__all__ = ["EXHIBITS", "ROOMS", "Curve", "Exhibit", "Pictures", "Points", "placard", "replaced"]
