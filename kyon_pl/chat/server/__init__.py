"""A chat whose replies a server computes; roles, memories, shortening and ids stay here. No torch is imported."""
