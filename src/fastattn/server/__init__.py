"""An HTTP server with the routes of OpenAI's API and of Text Embeddings Inference. Needs the extra `server`."""
