"""Synthetic rooms: layout, procedural textures, ray casting, shading and a camera walk."""
