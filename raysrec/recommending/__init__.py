"""The best items for users: whom they are asked for, what an actor does for some of them, and where it is written."""
