"""The Gradio app: ``page`` lays it out, ``stage`` shows the frames, ``runs`` makes them, ``limits`` bounds them."""
