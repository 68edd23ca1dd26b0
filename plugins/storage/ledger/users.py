"""People whom the hub knows."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import User
from plugins.storage.ledger.query import NOW, Query, Tx, param
from plugins.storage.schema import users

_c = users.c
_row = postgresql.insert(users).values(
    id=param("id"), email=param("email"), display_name=param("display_name"), role=param("role"), created=NOW
)
_ENSURE = Query[Any](
    _row.on_conflict_do_update(
        index_elements=[_c.id],
        set_={"email": _row.excluded.email, "display_name": _row.excluded.display_name, "role": _row.excluded.role},
        where=sa.or_(
            _c.email != _row.excluded.email,
            _c.display_name != _row.excluded.display_name,
            _c.role != _row.excluded.role,
        ),
    )
)


def ensure_user(tx: Tx, user: User) -> None:
    """Raises: AlreadyExists when the address is another user's."""
    tx.queue(f"user {user.id}")  # hubs that start together make the same one, and both its keys are unique
    email = user.email.strip().lower()
    tx.run(_ENSURE, id=user.id, email=email, display_name=user.display_name, role=user.role)
