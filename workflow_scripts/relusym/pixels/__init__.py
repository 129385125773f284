"""What a transformation of the images does to every position in a net."""
