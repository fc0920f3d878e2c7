"""What every API needs: parsing requests, starting streams, writing event streams, and error answers."""
