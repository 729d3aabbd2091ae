"""The commands, and the one composition root that reads settings and wires everything."""
