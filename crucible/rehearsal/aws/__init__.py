"""AWS on a laptop: moto answers the API, an ECS host really runs the containers' commands, spot machines go away."""
