"""A model behind HTTP: one process, one model, a page to try it and `POST /predict`.

The life of a request:

    read_body                     uploads.py: at most so many bytes, in memory alone
    read_upload -> Upload         uploads.py: image and options of a form, of JSON, of a raw body
    prepare                       service.py, some threads: header checked, decoded, resized
    Batcher                       batching.py, one thread: what has waited goes through together
    describe -> Answer            service.py, some threads: thresholds, masks, JSON (wire.py)

`app.py` has the addresses, `sockets.py` the listening, `server.py` the signals and the end. Needs
the extra `serve`.
"""
