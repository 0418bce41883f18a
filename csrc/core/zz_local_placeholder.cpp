namespace fastattn {}
