"""One trial, trained: the loop, several seeds as one network, several processes."""
