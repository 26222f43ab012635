"""The cluster that a run is on: how Ray is started there, what its machines have, and which of them does what."""
