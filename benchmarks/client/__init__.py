"""The client's side: as lean as Python allows, so that the server is what is measured."""
